package stage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

func TestLeftovers(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	build(t, s, nora)
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{
		s.WriteMirror(otto, []byte("{}\n")),
		os.Symlink("/etc", filepath.Join(s.dir, staging, string(nora), "state", "link")),
		os.WriteFile(outside, []byte("stays"), 0o600),
		os.Symlink(outside, filepath.Join(s.dir, staging, "link")),
		os.WriteFile(filepath.Join(s.dir, staging, "worker_"+string(otto)+".json"), []byte("12345"), 0o600),
		os.WriteFile(filepath.Join(s.dir, instances, "worker_x.json"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	staged, err := s.Stages()
	want := []Leftover{{string(nora), nora, 8}, {"link", "", 0}, {"worker_" + string(otto) + ".json", otto, 5}}
	if err != nil || !slices.Equal(staged, want) {
		t.Errorf("staged %+v, %v, want %+v", staged, err, want)
	}
	mirrors, err := s.Mirrors()
	if want := []Leftover{{"worker_" + string(otto) + ".json", otto, 3}}; err != nil || !slices.Equal(mirrors, want) {
		t.Errorf("mirrors %+v, %v", mirrors, err)
	}
	for _, l := range staged {
		if err := errors.Join(s.RemoveStage(l.Name), s.RemoveStage(l.Name)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(s.RemoveMirror(otto), s.RemoveMirror(otto)); err != nil {
		t.Error(err)
	}
	if left, err := s.Stages(); err != nil || len(left) > 0 {
		t.Errorf("left %+v, %v", left, err)
	}
	if left, err := s.Mirrors(); err != nil || len(left) > 0 {
		t.Errorf("left %+v, %v", left, err)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "stays" {
		t.Errorf("a link's target: %q, %v", text, err)
	}
	for _, name := range []string{"", ".", "..", "../instances", "a/b"} {
		if err := s.RemoveStage(name); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
