package main

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// none is an argument that no call can do anything with.
const none = ^uintptr(0)

// calls are system calls that a cage must refuse. Those whose success would hurt
// the machine are made with arguments that the kernel refuses by another error.
var calls = map[string]func() error{
	"mount":            func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
	"mount cgroup":     func() error { return unix.Mount("none", "/tmp", "cgroup2", 0, "") },
	"mount bind":       func() error { return unix.Mount("/", "/tmp", "", unix.MS_BIND, "") },
	"remount":          func() error { return unix.Mount("", "/proc", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
	"umount":           func() error { return unix.Unmount("/proc", unix.MNT_DETACH) },
	"pivot_root":       func() error { return unix.PivotRoot(".", ".") },
	"chroot":           func() error { return unix.Chroot("/tmp") },
	"fsopen":           func() error { _, err := unix.Fsopen("tmpfs", 0); return err },
	"open_tree":        func() error { _, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE); return err },
	"move_mount":       plain(unix.SYS_MOVE_MOUNT, none, none, none, none),
	"mount_setattr":    plain(unix.SYS_MOUNT_SETATTR, none),
	"unshare user":     func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"unshare mount":    func() error { return unix.Unshare(unix.CLONE_NEWNS) },
	"unshare net":      func() error { return unix.Unshare(unix.CLONE_NEWNET) },
	"setns":            setns,
	"clone user":       func() error { return child(syscall.CLONE_NEWUSER) },
	"clone pid":        func() error { return child(syscall.CLONE_NEWPID) },
	"clone3":           plain(unix.SYS_CLONE3, none, none),
	"ptrace":           func() error { return withChild(seize) },
	"process_vm_readv": func() error { return withChild(readMemory) },
	"pidfd_getfd":      func() error { return withChild(stealDescriptor) },
	"kcmp":             func() error { return withChild(compare) },
	"mknod block":      func() error { return mknod(unix.S_IFBLK, 7, 0) },
	"mknod char":       func() error { return mknod(unix.S_IFCHR, 1, 1) },
	"setuid":           func() error { return now(unix.SYS_SETRESUID, 0, 0, 0) },
	"setgid":           func() error { return now(unix.SYS_SETRESGID, 0, 0, 0) },
	"setgroups":        func() error { var g uint32; return now(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&g))) },
	"capset":           capset,
	"keyctl":           func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, true); return err },
	"add_key": func() error {
		_, err := unix.AddKey("user", "dals", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	},
	"request_key":        plain(unix.SYS_REQUEST_KEY, none, none),
	"init_module":        plain(unix.SYS_INIT_MODULE, 0, 0, 0),
	"finit_module":       plain(unix.SYS_FINIT_MODULE, none, none),
	"delete_module":      plain(unix.SYS_DELETE_MODULE, none),
	"kexec_load":         plain(unix.SYS_KEXEC_LOAD, none, none, none, none),
	"bpf":                plain(unix.SYS_BPF, none, none, none),
	"perf_event_open":    perf,
	"userfaultfd":        func() error { return now(unix.SYS_USERFAULTFD, unix.O_CLOEXEC) },
	"io_uring_setup":     func() error { var p [120]byte; return now(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p))) },
	"io_uring_enter":     plain(unix.SYS_IO_URING_ENTER, none),
	"io_uring_register":  plain(unix.SYS_IO_URING_REGISTER, none),
	"open_by_handle_at":  openByHandle,
	"fanotify_init":      func() error { _, err := unix.FanotifyInit(0, 0); return err },
	"quotactl":           plain(unix.SYS_QUOTACTL, none),
	"quotactl_fd":        plain(unix.SYS_QUOTACTL_FD, none),
	"swapon":             plain(unix.SYS_SWAPON, none),
	"swapoff":            plain(unix.SYS_SWAPOFF, none),
	"reboot":             plain(unix.SYS_REBOOT, none, none),
	"clock_settime":      func() error { return now(unix.SYS_CLOCK_SETTIME, 0, uintptr(unsafe.Pointer(&unix.Timespec{Nsec: -1}))) },
	"sethostname":        func() error { return unix.Sethostname([]byte("mine")) },
	"setdomainname":      func() error { return unix.Setdomainname([]byte("mine")) },
	"acct":               func() error { return unix.Acct("/nowhere") },
	"syslog":             func() error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 64)); return err },
	"mbind":              plain(unix.SYS_MBIND, 1, 1, none, none, none, none),
	"set_mempolicy":      plain(unix.SYS_SET_MEMPOLICY, 0),
	"migrate_pages":      plain(unix.SYS_MIGRATE_PAGES, 0, 0),
	"move_pages":         plain(unix.SYS_MOVE_PAGES, 0, 0),
	"process_madvise":    plain(unix.SYS_PROCESS_MADVISE, none),
	"personality":        plain(unix.SYS_PERSONALITY, 0x0400000),
	"fallocate":          plain(unix.SYS_FALLOCATE, none, 0, 0, 1),
	"open_tree_attr":     plain(467, none),                         // of Linux 6.15
	"file_getattr":       plain(468, none, none, none, none, none), // of Linux 6.17
	"file_setattr":       plain(469, none, none, none, none, none),
	"a call of tomorrow": plain(600),
	"priority":           func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) },
	"real time": func() error {
		p := int32(10)
		return now(unix.SYS_SCHED_SETSCHEDULER, 0, 1, uintptr(unsafe.Pointer(&p)))
	},
	"more open files":       moreFiles,
	"no new privileges off": func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) },
}

// plain is a call by its number; now makes it.
func plain(number uintptr, args ...uintptr) func() error {
	return func() error { return now(number, args...) }
}

//go:uintptrescapes
func now(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func setns() error {
	fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	return unix.Setns(fd, 0)
}

// child runs one in namespaces of its own.
func child(flags uintptr) error {
	cmd := exec.Command("/proc/self/exe", "try", "nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	return cmd.Run()
}

// withChild does f to a process that anybody of the same uid may touch.
func withChild(f func(pid int) error) error {
	cmd := exec.Command("/proc/self/exe", "try", "sleep")
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	return f(cmd.Process.Pid)
}

func seize(pid int) error {
	runtime.LockOSThread()
	return unix.PtraceSeize(pid)
}

var mark byte

func readMemory(pid int) error {
	var here byte
	there := uintptr(unsafe.Pointer(&mark)) // the same binary has it in the same place
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &here, Len: 1}}, []unix.RemoteIovec{{Base: there, Len: 1}}, 0)
	return err
}

func stealDescriptor(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	_, err = unix.PidfdGetfd(fd, 0, 0)
	return err
}

func compare(pid int) error {
	const files = 2
	return now(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), files)
}

func mknod(kind uint32, major, minor uint32) error {
	path := "/tmp/hostile-device"
	defer os.Remove(path)
	return unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor)))
}

func capset() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
	return unix.Capset(&header, &data[0])
}

func perf() error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	_, err := unix.PerfEventOpen(&attr, 0, -1, -1, 0)
	return err
}

func openByHandle() error {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/proc/self/exe", unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		handle = unix.NewFileHandle(1, make([]byte, 8))
	}
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	_, err = unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
	return err
}

func moreFiles() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Max++
	return unix.Prlimit(0, unix.RLIMIT_NOFILE, &l, nil)
}
