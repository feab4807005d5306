package containerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unfinished begins the names of folders that a crash may leave behind.
const unfinished = ".new-"

func (l *Launcher) rootfsDir() string { return filepath.Join(l.dir(), "rootfs") }

// rootfs is the folder that all workers of one binary have as their root.
func (l *Launcher) rootfs(digest string) string { return filepath.Join(l.rootfsDir(), digest) }

func rootfsReady(path string) bool {
	_, err := os.Stat(path) // it appears complete or not at all
	return err == nil
}

// makeRootfs makes the folder at path, complete or not at all.
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
	if err := fillRootfs(temp, binary); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return nil
}

func fillRootfs(dir, binary string) error {
	for _, d := range rootDirs {
		path := filepath.Join(dir, d.name)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(path, d.mode); err != nil { // past the umask
			return err
		}
	}
	if err := linkOrCopy(binary, filepath.Join(dir, binaryName)); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
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
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Chmod(to, 0o555) // past the umask
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
