package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/dals-host/dals-host/host/worker"
)

// Leftover is a file or folder that the store holds for a worker.
type Leftover struct {
	Name   string // in its folder
	Serial worker.Serial
	Bytes  int64 // of all files in it
}

// Stages lists what lies among the stages. A name that is no serial has none.
func (s *Store) Stages() ([]Leftover, error) {
	return s.leftovers(staging, func(name string) (worker.Serial, bool) {
		serial, err := worker.ParseSerial(name)
		if err != nil {
			// A mirror on its way, or what nobody of us has put there.
			serial, _ = mirrored(name)
		}
		return serial, true
	})
}

// RemoveStage removes one of Stages, whatever it is.
func (s *Store) RemoveStage(name string) error {
	if name != path.Base(name) || !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("remove stage %q: %w", name, worker.ErrInvalid)
	}
	if err := removeAll(s.root, path.Join(staging, name)); err != nil {
		return fmt.Errorf("remove stage %s: %w", name, err)
	}
	return nil
}

// Folders lists the promoted folders of workers.
func (s *Store) Folders() ([]Leftover, error) {
	return s.leftovers(instances, func(name string) (worker.Serial, bool) {
		serial, err := worker.ParseSerial(name)
		return serial, err == nil
	})
}

// Mirrors lists the mirrors of workers.
func (s *Store) Mirrors() ([]Leftover, error) { return s.leftovers(instances, mirrored) }

// RemoveMirror removes the mirror of a worker. One that is not there is removed
// already.
func (s *Store) RemoveMirror(serial worker.Serial) error {
	name, err := mirror(serial)
	if err != nil {
		return err
	}
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mirror of %s: %w", serial, err)
	}
	return nil
}

// mirrored is the serial in the name of a mirror.
func mirrored(name string) (worker.Serial, bool) {
	text, prefixed := strings.CutPrefix(name, "worker_")
	text, suffixed := strings.CutSuffix(text, ".json")
	serial, err := worker.ParseSerial(text)
	return serial, prefixed && suffixed && err == nil
}

// leftovers lists those entries of a folder that whose takes, with their serials.
func (s *Store) leftovers(folder string, whose func(name string) (worker.Serial, bool)) ([]Leftover, error) {
	entries, err := fs.ReadDir(s.root.FS(), folder)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", folder, err)
	}
	var found []Leftover
	for _, e := range entries {
		serial, ok := whose(e.Name())
		if !ok {
			continue
		}
		found = append(found, Leftover{Name: e.Name(), Serial: serial, Bytes: s.bytes(path.Join(folder, e.Name()))})
	}
	return found, nil
}

// bytes is the size of all files at and below a path; what cannot be read counts
// nothing. No link is followed.
func (s *Store) bytes(name string) (total int64) {
	_ = fs.WalkDir(s.root.FS(), name, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total
}
