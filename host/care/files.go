package care

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
)

// rows gives the record the registry's entries.
type rows struct{ *registry.Registry }

func (r rows) Groups(ctx context.Context, from uint64) iter.Seq2[record.Group, error] {
	return func(yield func(record.Group, error) bool) {
		for g, err := range r.Registry.Groups(ctx, from) {
			if !yield(record.Group(g), err) {
				return
			}
		}
	}
}

// until is a reader that stops when ctx ends.
func until(ctx context.Context, r io.Reader) io.Reader { return &untilReader{ctx, r} }

type untilReader struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilReader) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// writeDurable writes a new file of exactly this mode, whole and on disk.
func writeDurable(path string, mode fs.FileMode, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// copyFiles copies the regular files of a folder, if it is there, into a new one
// that is closed to others.
func copyFiles(from, to string, mode fs.FileMode) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), mode); err != nil {
			return err
		}
	}
	return syncDir(to)
}

func copyFile(from, to string, mode fs.FileMode) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeDurable(to, mode, f)
}

// exchange swaps two paths in one step: nobody ever sees neither.
func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// isMount says whether a folder is the root of a mount.
func isMount(dir string) (bool, error) {
	var info unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, 0, &info); err != nil {
		return false, &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	return info.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeAll removes the folders of that beginning: what was killed left them.
func removeAll(parent, beginning string) error {
	entries, err := os.ReadDir(parent)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), beginning) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(parent, e.Name())))
		}
	}
	return err
}
