// Package stage keeps the folders of workers. A folder is put together below
// .stage/, promoted by one rename to instances/, and then made durable: a worker's
// folder is there whole or not at all, and what a power cut may have taken of one
// nothing has told of. One that another is to replace waits in
// .aside/ until that is certain. All lie below one directory, so they are on one
// file system by construction.
//
// Every undo (Drop, Demote, Remove, PutBack, DropAside) may be repeated and treats
// what is not there as done. A crash leaves at most a stage, which Sweep
// removes. The mirror of a worker, instances/worker_<serial>.json, is written
// whole, and only when it differs.
//
// A worker may have put anything into its own state/ and run/. Nothing here
// follows a symlink: all paths are resolved by os.Root, below the worker's own
// folder.
//
// The package does not know what is in a folder, and does not check it: see
// sdk/manifest. Calls on different serials may be made concurrently; calls on
// one serial are the caller's to order.
package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

const (
	staging   = ".stage"
	warm      = ".warm"
	aside     = ".aside"
	instances = "instances"
)

// Config says where the folders of workers are.
type Config struct {
	Dir string // workers/ of the data folder; made when missing
}

// Store is the folders of all workers of one host.
type Store struct {
	dir  string
	root *os.Root
}

// Open makes what is missing of the folders. The caller closes the store.
func Open(c Config) (*Store, error) {
	for _, d := range []string{c.Dir, filepath.Join(c.Dir, staging), filepath.Join(c.Dir, warm), filepath.Join(c.Dir, aside), filepath.Join(c.Dir, instances)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open stage: %w", err)
		}
	}
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	return &Store{dir: c.Dir, root: root}, nil
}

// Close lets go of the folder.
func (s *Store) Close() error { return s.root.Close() }

// Dir is the folder of a promoted worker.
func (s *Store) Dir(serial worker.Serial) string {
	return filepath.Join(s.dir, instances, string(serial))
}

// OpenRoot opens the folder of a promoted worker, so that it can be read
// without following what the worker put there. The caller closes it.
func (s *Store) OpenRoot(serial worker.Serial) (*os.Root, error) {
	name, err := promoted(serial)
	if err != nil {
		return nil, err
	}
	return s.openRoot(name, serial)
}

func (s *Store) openRoot(name string, serial worker.Serial) (*os.Root, error) {
	root, err := s.root.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open folder of %s: %w", serial, worker.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open folder of %s: %w", serial, err)
	}
	return root, nil
}

// Drop removes the stage of a worker, also one that NewWarm made.
func (s *Store) Drop(serial worker.Serial) error {
	name, err := staged(serial)
	if err != nil {
		return err
	}
	failpoint.Hit("stage", "drop", "before")
	if err := errors.Join(removeAll(s.root, name), removeAll(s.root, path.Join(warm, string(serial)))); err != nil {
		return fmt.Errorf("drop stage of %s: %w", serial, err)
	}
	failpoint.Hit("stage", "drop", "after")
	return nil
}

// Demote undoes a promotion: the folder is a stage again.
func (s *Store) Demote(serial worker.Serial) error {
	from, err := promoted(serial)
	if err != nil {
		return err
	}
	to, err := staged(serial)
	if err != nil {
		return err
	}
	failpoint.Hit("stage", "demote", "before")
	err = s.root.Rename(from, to)
	failpoint.Hit("stage", "demote", "after")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.syncParents()
	}
	if err != nil {
		return fmt.Errorf("demote folder of %s: %w", serial, err)
	}
	return nil
}

// Remove ends the folder of a promoted worker, with its keys and its state, and
// one that is aside. It is out of instances/ at once; if a crash interrupts the
// rest, Sweep ends it.
func (s *Store) Remove(serial worker.Serial) error {
	// A leftover stage of the same name would be in the way of the rename.
	for _, step := range []func(worker.Serial) error{s.Drop, s.Demote, s.Drop, s.DropAside} {
		if err := step(serial); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes all stages, and names them, and whatever else a crash left among
// them; those that were never any worker's it does not name. It is for the start,
// when nothing is being forged.
func (s *Store) Sweep() ([]worker.Serial, error) {
	if _, err := s.sweep(warm); err != nil {
		return nil, err
	}
	return s.sweep(staging)
}

func (s *Store) sweep(folder string) ([]worker.Serial, error) {
	entries, err := fs.ReadDir(s.root.FS(), folder)
	if err != nil {
		return nil, fmt.Errorf("sweep stages: %w", err)
	}
	var removed []worker.Serial
	for _, e := range entries {
		if err := removeAll(s.root, path.Join(folder, e.Name())); err != nil {
			return removed, fmt.Errorf("sweep stage %s: %w", e.Name(), err)
		}
		if serial, err := worker.ParseSerial(e.Name()); err == nil {
			removed = append(removed, serial)
		}
	}
	return removed, nil
}

// Instances are the workers whose folders are promoted.
func (s *Store) Instances() ([]worker.Serial, error) { return s.serials(instances) }

func (s *Store) serials(dir string) ([]worker.Serial, error) {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var serials []worker.Serial
	for _, e := range entries {
		if serial, err := worker.ParseSerial(e.Name()); err == nil {
			serials = append(serials, serial)
		}
	}
	return serials, nil
}

// syncParents makes renames between the two folders durable.
func (s *Store) syncParents() error {
	failpoint.Hit("stage", "sync parents", "before")
	err := errors.Join(syncDir(s.root, staging), syncDir(s.root, instances))
	failpoint.Hit("stage", "sync parents", "after")
	return err
}

func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// staged and promoted are a worker's paths below the store. A serial that is
// none never becomes a path.
func staged(serial worker.Serial) (string, error)   { return below(staging, serial) }
func promoted(serial worker.Serial) (string, error) { return below(instances, serial) }

func below(dir string, serial worker.Serial) (string, error) {
	if _, err := worker.ParseSerial(string(serial)); err != nil {
		return "", fmt.Errorf("find folder: %w", err)
	}
	return path.Join(dir, string(serial)), nil
}
