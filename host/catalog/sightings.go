package catalog

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/internal/whole"
)

// sightings remember which digest a file had when it looked so, across restarts
// too: a file that looks the same is not read again. They are a cache: without
// them every binary is read once more, and nothing is executed.
type sightings struct {
	path    string
	byPath  map[string]sighting
	changed bool
}

type sighting struct {
	Look   look
	Digest string
}

// openSightings reads what an earlier host saved. A file that cannot be read is
// as good as none.
func openSightings(path string) *sightings {
	s := &sightings{path: path, byPath: map[string]sighting{}}
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &s.byPath) != nil || s.byPath == nil {
		s.byPath = map[string]sighting{}
	}
	return s
}

func (s *sightings) digest(path string, l look) (string, bool) {
	seen, ok := s.byPath[path]
	return seen.Digest, ok && seen.Look == l
}

func (s *sightings) set(path string, l look, digest string) {
	s.byPath[path], s.changed = sighting{l, digest}, true
}

func (s *sightings) forget(path string) {
	if _, ok := s.byPath[path]; ok {
		delete(s.byPath, path)
		s.changed = true
	}
}

// save writes what has changed.
func (s *sightings) save() error {
	if !s.changed {
		return nil
	}
	data, err := json.Marshal(s.byPath)
	failpoint.Hit("catalog", "sightings", "before")
	if err == nil {
		err = whole.WriteFile(s.path, data)
	}
	if err != nil {
		return fmt.Errorf("save sightings: %w", err)
	}
	failpoint.Hit("catalog", "sightings", "after")
	s.changed = false
	return nil
}
