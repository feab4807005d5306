package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	toRead = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	toRun  = toRead | unix.LANDLOCK_ACCESS_FS_EXECUTE
	// What concerns files alone may not be granted on more than that of a file.
	toUse = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	// In its own folder a plugin makes its socket, as go-plugin does by way of a file.
	toOwn = toRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
)

// granted is what a plugin may do besides: be loaded, and read what the kernel
// says of processes, which Landlock cannot take apart.
var granted = map[string]uint64{
	"/usr": toRun, "/lib": toRun, "/lib64": toRun, "/etc/ld.so.cache": unix.LANDLOCK_ACCESS_FS_READ_FILE, "/proc": toRead,
	"/dev/null": toUse, "/dev/zero": toUse, "/dev/random": toUse, "/dev/urandom": toUse,
}

// landlocked restricts the calling thread, and the processes that it starts, to
// what a plugin needs of files, and takes TCP, abstract sockets and signals to
// others away, as far as the kernel's version of Landlock goes, which it returns.
// It cannot be taken back. The thread must have no_new_privs. The libraries for
// this restrict all threads of a process.
func landlocked(binary, folder *os.File) (version int, err error) {
	n, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, fmt.Errorf("ask for version of Landlock: %w", errno)
	}
	version = int(n)
	handled := handledBy(version)
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&handled)), unsafe.Sizeof(handled), 0) //nolint:gosec // the kernel copies it
	if errno != 0 {
		return version, fmt.Errorf("make Landlock rules: %w", errno)
	}
	rules := os.NewFile(fd, "landlock")
	defer rules.Close()
	err = errors.Join(
		grant(rules, binary, unix.LANDLOCK_ACCESS_FS_READ_FILE|unix.LANDLOCK_ACCESS_FS_EXECUTE),
		grant(rules, folder, toOwn&handled.Handled_access_fs),
	)
	for path, access := range granted {
		err = errors.Join(err, grantPath(rules, path, access))
	}
	if err != nil {
		return version, err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules.Fd(), 0, 0); errno != 0 {
		return version, fmt.Errorf("restrict by Landlock: %w", errno)
	}
	return version, nil
}

// handledBy is all that a version of Landlock can take away.
func handledBy(version int) unix.LandlockRulesetAttr {
	a := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1} // the first version's
	if version >= 2 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= 4 {
		a.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if version >= 5 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if version >= 6 {
		a.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	return a
}

func grant(rules, object *os.File, access uint64) error {
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(object.Fd())}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, rules.Fd(), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0) //nolint:gosec // the kernel copies it
	if errno != 0 {
		return fmt.Errorf("grant %s by Landlock: %w", object.Name(), errno)
	}
	return nil
}

// grantPath grants what is there.
func grantPath(rules *os.File, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	object := os.NewFile(uintptr(fd), path)
	defer object.Close()
	return grant(rules, object, access)
}
