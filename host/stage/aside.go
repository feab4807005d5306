package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

// A worker's folder is replaced by another in three steps: SetAside, Promote,
// TakeOver. That the old one is aside says, after a crash too, that the
// replacement is neither finished (DropAside) nor undone (PutBack).

// SetAside takes the folder of a promoted worker out of the way. One that is
// aside already is a worker.ErrConflict.
func (s *Store) SetAside(serial worker.Serial) error {
	from, err := promoted(serial)
	if err != nil {
		return err
	}
	to := path.Join(aside, string(serial))
	// A rename onto an empty folder would succeed.
	if _, err := s.root.Lstat(to); err == nil {
		return fmt.Errorf("set folder of %s aside: %w: there is one already", serial, worker.ErrConflict)
	}
	failpoint.Hit("stage", "set aside", "before")
	err = s.root.Rename(from, to)
	failpoint.Hit("stage", "set aside", "after")
	if err == nil {
		err = s.syncAside()
	}
	if err != nil {
		return fmt.Errorf("set folder of %s aside: %w", serial, err)
	}
	return nil
}

// syncAside makes renames between the promoted folders and those aside durable.
func (s *Store) syncAside() error {
	failpoint.Hit("stage", "sync aside", "before")
	err := errors.Join(syncDir(s.root, aside), syncDir(s.root, instances))
	failpoint.Hit("stage", "sync aside", "after")
	return err
}

// TakeOver moves folders from the worker's old folder into the new one.
func (s *Store) TakeOver(serial worker.Serial, names ...string) error {
	to, err := promoted(serial)
	if err == nil {
		err = s.move(path.Join(aside, string(serial)), to, names)
	}
	if err != nil {
		return fmt.Errorf("take over from the old folder of %s: %w", serial, err)
	}
	return nil
}

// PutBack undoes SetAside and what followed: the old folder, with what TakeOver
// was told to move, is the worker's again, and the new one is gone.
func (s *Store) PutBack(serial worker.Serial, names ...string) error {
	to, err := promoted(serial)
	if err != nil {
		return err
	}
	from := path.Join(aside, string(serial))
	if _, err := s.root.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err = s.putBack(from, to, names)
	if err == nil {
		err = errors.Join(s.Drop(serial), s.Demote(serial), s.Drop(serial))
	}
	if err == nil {
		failpoint.Hit("stage", "put back", "before")
		err = s.root.Rename(from, to)
		failpoint.Hit("stage", "put back", "after")
	}
	if err == nil {
		err = s.syncAside()
	}
	if err != nil {
		return fmt.Errorf("put old folder of %s back: %w", serial, err)
	}
	return nil
}

// putBack moves back those of the names that had been moved.
func (s *Store) putBack(from, to string, names []string) error {
	var moved []string
	for _, name := range names {
		_, err := s.root.Lstat(path.Join(from, name))
		_, there := s.root.Lstat(path.Join(to, name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && there == nil:
			moved = append(moved, name)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return s.move(to, from, moved)
}

// move moves what is named between two folders, and makes that durable.
func (s *Store) move(from, to string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		failpoint.Hit("stage", "move", "before")
		err := s.root.Rename(path.Join(from, name), path.Join(to, name))
		failpoint.Hit("stage", "move", "after")
		if err != nil {
			return err
		}
	}
	failpoint.Hit("stage", "sync moved", "before")
	err := errors.Join(syncDir(s.root, from), syncDir(s.root, to))
	failpoint.Hit("stage", "sync moved", "after")
	return err
}

// DropAside removes a worker's old folder.
func (s *Store) DropAside(serial worker.Serial) error {
	if _, err := worker.ParseSerial(string(serial)); err != nil {
		return fmt.Errorf("find folder: %w", err)
	}
	failpoint.Hit("stage", "drop aside", "before")
	err := removeAll(s.root, path.Join(aside, string(serial)))
	failpoint.Hit("stage", "drop aside", "after")
	if err != nil {
		return fmt.Errorf("drop old folder of %s: %w", serial, err)
	}
	return nil
}

// OpenAside opens a worker's old folder, as OpenRoot does its own.
func (s *Store) OpenAside(serial worker.Serial) (*os.Root, error) {
	if _, err := worker.ParseSerial(string(serial)); err != nil {
		return nil, fmt.Errorf("find folder: %w", err)
	}
	return s.openRoot(path.Join(aside, string(serial)), serial)
}

// Asides are the workers whose old folder is aside.
func (s *Store) Asides() ([]worker.Serial, error) { return s.serials(aside) }
