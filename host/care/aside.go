package care

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What a recovery puts aside is named by what it was, why, and when.
const (
	corruptForm = ".corrupt-"
	damagedForm = ".damaged-"
	asideTime   = "20060102T150405.000Z"
)

// Aside is a file or folder that a recovery put aside.
type Aside struct {
	Path  string
	At    time.Time // of the recovery
	Bytes int64
}

// Asides lists what recoveries put aside of a registry's file and of the record's
// folder.
func Asides(registry, record string) ([]Aside, error) {
	var found []Aside
	for _, beginning := range []string{registry + corruptForm, record + damagedForm} {
		dir := filepath.Dir(beginning)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), filepath.Base(beginning))
			at, err := time.Parse(asideTime, strings.TrimSuffix(strings.TrimSuffix(name, "-wal"), "-shm"))
			if !ok || err != nil {
				continue // none of ours
			}
			path := filepath.Join(dir, e.Name())
			size, err := sizeOf(path)
			if err != nil {
				return nil, err
			}
			found = append(found, Aside{path, at, size})
		}
	}
	return found, nil
}

func sizeOf(path string) (bytes int64, err error) {
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // somebody was faster
	}
	return bytes, err
}
