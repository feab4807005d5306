package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// maxBinary bounds a plugin's size in bytes.
const maxBinary = 512 << 20

// errUnsteady says that a file is not complete yet.
var errUnsteady = errors.New("still being written")

// pluginName is the only kind of name that is looked at.
var pluginName = regexp.MustCompile(`^dals-worker-[A-Za-z0-9_.+-]+$`)

// isPluginName leaves alone what is not a plugin's name and what editors and
// downloads leave while they work.
func isPluginName(name string) bool {
	if len(name) > 200 || !pluginName.MatchString(name) {
		return false
	}
	for _, passing := range []string{".tmp", ".part", ".partial", ".crdownload", ".swp", ".bak"} {
		if strings.HasSuffix(name, passing) {
			return false
		}
	}
	return true
}

// look is what one glance at a file shows, its folder included. Two equal looks
// mean that nothing has changed: ctime moves with every write, chmod and chown.
type look struct {
	Dev, Ino     uint64
	Size         int64
	MTime, CTime int64 // nanoseconds
	Mode, UID    uint32
	FolderMode   uint32
	FolderUID    uint32
}

func lookOf(file, folder *unix.Stat_t) look {
	return look{
		Dev: file.Dev, Ino: file.Ino, Size: file.Size,
		MTime: file.Mtim.Nano(), CTime: file.Ctim.Nano(),
		Mode: file.Mode, UID: file.Uid,
		FolderMode: folder.Mode, FolderUID: folder.Uid,
	}
}

// lookInto stats the plugins in a folder, by path. It opens none of them.
func lookInto(dir string) (map[string]look, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var folder unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &folder); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	looks := map[string]look{}
	for _, name := range names {
		if !isPluginName(name) {
			continue
		}
		var file unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), name, &file, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			looks[filepath.Join(dir, name)] = lookOf(&file, &folder)
		}
	}
	return looks, nil
}

// openPlugin opens the file that seen was a look at, after checking on its
// descriptor that nobody but root and the host can have written it, that it is
// complete, and that it is a binary for this machine. The error is a *Fault,
// errUnsteady, or trouble of the host's.
func openPlugin(path string, seen look, hostUID int) (*os.File, error) {
	if err := checkPlace(path, seen, hostUID); err != nil {
		return nil, err
	}
	// Not blocking: what was a file at the look may be a pipe by now.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch err {
	case nil:
	case unix.ELOOP:
		return nil, errUnsteady
	case unix.EACCES, unix.EPERM:
		return nil, &Fault{"cannot be read by the host", "chmod a+r " + path}
	default:
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if err := checkOpened(f, seen); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkOpened makes sure that f is what was looked at, and whole.
func checkOpened(f *os.File, seen look) error {
	if err := sameAs(f, seen); err != nil {
		return err
	}
	if writing, err := isBeingWritten(f); err != nil {
		return err
	} else if writing {
		return errUnsteady
	}
	return checkELF(f, seen.Size)
}

// isBeingWritten says whether anybody has f, which is open for reading, open for
// writing: a read lease is refused exactly then. Where the file system has no
// leases, nobody is said to.
func isBeingWritten(f *os.File) (bool, error) {
	switch _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err {
	case nil:
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
			return false, fmt.Errorf("release lease: %w", err)
		}
		return false, nil
	case unix.EAGAIN:
		return true, nil
	default:
		return false, nil
	}
}

// sameAs says whether f is still what was seen.
func sameAs(f *os.File, seen look) error {
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if lookOf(&now, &unix.Stat_t{Mode: seen.FolderMode, Uid: seen.FolderUID}) != seen {
		return errUnsteady
	}
	return nil
}

// checkPlace judges kind, size, owner and mode of a file and its folder.
func checkPlace(path string, seen look, hostUID int) error {
	switch seen.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		return &Fault{"is a symbolic link", "put the binary itself into the folder"}
	case unix.S_IFDIR:
		return &Fault{"is a folder", "put the binary itself into the plugins folder"}
	default:
		return &Fault{"is not a regular file", "remove it, and put the binary itself there"}
	}
	if seen.Size > maxBinary {
		return &Fault{fmt.Sprintf("is %d MiB, more than %d", seen.Size>>20, maxBinary>>20), "strip the binary, or ship less in it"}
	}
	folder := filepath.Dir(path)
	for _, place := range []struct {
		what, path string
		mode, uid  uint32
	}{{"its folder", folder, seen.FolderMode, seen.FolderUID}, {"it", path, seen.Mode, seen.UID}} {
		if place.uid != 0 && int(place.uid) != hostUID {
			return &Fault{fmt.Sprintf("%s belongs to uid %d, not to root or the host", place.what, place.uid), fmt.Sprintf("chown %d %s", hostUID, place.path)}
		}
		if place.mode&0o022 != 0 {
			return &Fault{fmt.Sprintf("%s is writable by others (mode %04o)", place.what, place.mode&0o7777), "chmod go-w " + place.path}
		}
	}
	return nil
}
