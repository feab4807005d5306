package containerd

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
)

// What containerd, its shims and the runtime know of running containers is two dozen
// small files for each, which are of no use after a boot. They are kept in memory
// where there is a file system for that, and links lead there; else on disk.

// enoughState is the free space that a file system must have for them: some
// thousand containers', at 80 KiB each.
const enoughState = 512 << 20

func (p *private) stateLinks() []string { return []string{p.stateDir(), p.runcRoot()} }

// makeState makes the folders of a containerd that is about to be started. Those
// that are there stay where they are.
func (p *private) makeState() error {
	for _, link := range p.stateLinks() {
		switch target, err := os.Readlink(link); {
		case err == nil && ownFolder(filepath.Dir(target)): // of which a removal may have left no more
		case err == nil:
			if err := os.Remove(link); err != nil {
				return err
			}
		case errors.Is(err, syscall.EINVAL): // a folder on disk
			continue
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
		if err := p.makeLink(link); err != nil {
			return err
		}
	}
	return nil
}

// makeLink makes a folder in memory and the link to it, unless they are there or
// there is no such memory: then containerd makes a folder on disk.
func (p *private) makeLink(link string) error {
	target, err := os.Readlink(link)
	if err != nil {
		parent := p.memory()
		if parent == "" {
			return nil
		}
		target = filepath.Join(parent, filepath.Base(link))
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return os.MkdirAll(target, 0o700)
}

// unique is a name of this data folder's own among all of a machine's.
func (p *private) unique() string {
	return fmt.Sprintf("%s-%.4x", p.namespace, sha256.Sum256([]byte(p.dir)))
}

// memory is a folder of this data folder's own in memory, or "".
func (p *private) memory() string {
	for _, root := range []string{"/run", "/dev/shm"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || fs.Bavail*uint64(fs.Bsize) < enoughState {
			continue
		}
		if dir := filepath.Join(root, p.unique()); ownFolder(dir) {
			return dir
		}
	}
	return ""
}

// ownFolder makes a folder, and says whether it is root's alone: in /dev/shm
// anybody may have made it.
func ownFolder(dir string) bool {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return false
	}
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode == unix.S_IFDIR|0o700 && st.Uid == 0
}

// removeState deletes the folders, wherever they are.
func (p *private) removeState() (err error) {
	if err := shim.Clear(p.stateDir()); err != nil {
		return err
	}
	for _, link := range p.stateLinks() {
		if target, linkErr := os.Readlink(link); linkErr == nil {
			err = errors.Join(err, os.RemoveAll(target), removeEmpty(filepath.Dir(target)))
		}
		err = errors.Join(err, os.RemoveAll(link))
	}
	return err
}

// removeEmpty deletes a folder unless something is in it.
func removeEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}
