package stage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// removeAll removes a folder, or a file, whatever a worker put there; what is
// not there is removed already. It is no os.Root.RemoveAll: that one keeps a
// descriptor open per level, and a worker can nest folders deeper than the host
// has descriptors. Here each folder is lifted to the top before it is looked
// into, so that none is ever deep.
func removeAll(root *os.Root, top string) error {
	info, err := root.Lstat(top)
	if err == nil && info.IsDir() {
		lifted := 0
		err = clearDir(root, top, func(dir string) error {
			err := clearDir(root, dir, func(deeper string) error {
				to, err := vacant(root, top, &lifted)
				if err != nil {
					return err
				}
				return errors.Join(unlock(root, deeper), root.Rename(deeper, to))
			})
			if err != nil {
				return err
			}
			return root.Remove(dir)
		})
	}
	if err == nil {
		err = root.Remove(top)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// clearDir removes what is in a folder; each folder in it, sub has to take away.
func clearDir(root *os.Root, dir string, sub func(string) error) error {
	for {
		entries, err := some(root, dir)
		if err != nil || len(entries) == 0 {
			return err
		}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			if e.IsDir() {
				err = sub(name)
			} else {
				err = root.Remove(name)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
}

// some reads the first entries of a folder: a worker may have made millions.
func some(root *os.Root, dir string) ([]fs.DirEntry, error) {
	const atOnce = 1024
	if err := unlock(root, dir); err != nil {
		return nil, err
	}
	d, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(atOnce)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return entries, err
}

// unlock lets a host that is not root look into a folder and move it. Root can
// anyway, and must not: a chmod follows links, and the worker's last process may
// still be putting them there.
func unlock(root *os.Root, dir string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return root.Chmod(dir, 0o700)
}

// vacant is a name at the top that nothing has.
func vacant(root *os.Root, top string, n *int) (string, error) {
	for {
		*n++
		name := path.Join(top, fmt.Sprintf("lifted-%d", *n))
		_, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
}
