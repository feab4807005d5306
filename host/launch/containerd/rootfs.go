package containerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/failpoint"
)

// unfinished begins the names of folders that a crash may leave behind.
const unfinished = ".new-"

func (l *Launcher) rootfsDir() string { return rootfsDir(l.dir()) }
func rootfsDir(dir string) string     { return filepath.Join(dir, "rootfs") }

// rootfs is the folder that all workers of one binary have as their root.
func (l *Launcher) rootfs(digest string) string { return filepath.Join(l.rootfsDir(), digest) }

// rootfsReady says that the folder at path is complete: its binary comes last.
func rootfsReady(path string) bool {
	info, err := os.Lstat(filepath.Join(path, binaryName))
	return err == nil && info.Mode().IsRegular()
}

// makeRootfs makes the folder at path. One that lacks its binary is completed
// where it is: mounts of workers that run from it would not survive its deletion.
func makeRootfs(path, binary string) (err error) {
	if rootfsReady(path) {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make root folder: %w", err)
		}
	}()
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(parent, unfinished)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	whole := filepath.Join(temp, binaryName)
	failpoint.Hit("containerd", "rootfs folders", "before")
	if err := linkOrCopy(binary, whole); err != nil {
		return err
	}
	if err := makeRootDirs(path); err != nil {
		return err
	}
	failpoint.Hit("containerd", "rootfs folders", "after")
	failpoint.Hit("containerd", "rootfs", "before")
	if err := os.Rename(whole, filepath.Join(path, binaryName)); err != nil {
		return err
	}
	failpoint.Hit("containerd", "rootfs", "after")
	failpoint.Hit("containerd", "rootfs sync", "before")
	err = errors.Join(syncDir(path), syncDir(parent), syncDir(filepath.Dir(parent)))
	failpoint.Hit("containerd", "rootfs sync", "after")
	return err
}

// makeRootDirs makes all of the folder but the binary, and has it on disk.
func makeRootDirs(path string) error {
	dirs := append([]rootDir{{"", 0o755}}, rootDirs...)
	for _, d := range dirs {
		dir := filepath.Join(path, d.name)
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.Chmod(dir, d.mode); err != nil { // past the umask
			return err
		}
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return syncDir(path)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// linkOrCopy links the store's file, so that the page cache is shared, and
// copies it where that is impossible.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EMLINK) {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o555)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o555), out.Sync(), out.Close()) // the mode: past the umask
}

// sweepRootfs deletes what a crash has left unfinished.
func sweepRootfs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep root folders: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), unfinished) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("sweep root folders: %w", err)
		}
	}
	return nil
}
