package stage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// replacing are the steps by which a folder replaces another.
var replacing = []struct {
	name string
	do   func(s *Store, next *Stage) error
}{
	{"build", func(*Store, *Stage) error { return nil }},
	{"set aside", func(s *Store, _ *Stage) error { return s.SetAside(nora) }},
	{"promote", func(_ *Store, next *Stage) error { return next.Promote() }},
	{"sync", func(_ *Store, next *Stage) error { return next.Sync() }},
	{"take over state", func(s *Store, _ *Stage) error { return s.TakeOver(nora, "state") }},
	{"take over logs", func(s *Store, _ *Stage) error { return s.TakeOver(nora, "logs") }},
}

// replaceable is a store with a worker's folder and the stage of what is to
// replace it.
func replaceable(t *testing.T) (*Store, *Stage) {
	t.Helper()
	s := openStore(t)
	old := build(t, s, nora)
	for _, err := range []error{
		old.Mkdir("logs", Access{Mode: 0o700}),
		old.Promote(),
		old.Sync(),
		os.WriteFile(filepath.Join(s.Dir(nora), "state", "memory"), []byte("old"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	next, err := s.New(nora)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	for _, err := range []error{
		next.Mkdir("run", Access{Mode: 0o700, UID: uid, GID: uid}),
		next.WriteFile("identity.json", []byte("new"), Access{Mode: 0o440, GID: uid}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return s, next
}

// holds checks what a worker's folder says, and that it has its state.
func holds(t *testing.T, s *Store, identity string) {
	t.Helper()
	for file, want := range map[string]string{"identity.json": identity, "state/memory": "old"} {
		if got, err := os.ReadFile(filepath.Join(s.Dir(nora), file)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(s.Dir(nora), "logs")); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{staging, aside} {
		if left, err := os.ReadDir(filepath.Join(s.dir, dir)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	s, next := replaceable(t)
	for _, step := range replacing {
		if err := step.do(s, next); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
	if asides, err := s.Asides(); err != nil || !slices.Equal(asides, []worker.Serial{nora}) {
		t.Errorf("aside: %v, %v", asides, err)
	}
	if err := s.SetAside(nora); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("a second aside: %v", err)
	}
	if swept, err := s.Sweep(); err != nil || len(swept) != 0 {
		t.Errorf("swept %v, %v", swept, err)
	}
	for range 2 {
		if err := s.DropAside(nora); err != nil {
			t.Fatal(err)
		}
	}
	holds(t, s, "new")
}

// TestPutBack undoes a replacement after each of its steps, and does it again.
func TestPutBack(t *testing.T) {
	t.Parallel()
	for i, last := range replacing {
		t.Run("after "+last.name, func(t *testing.T) {
			t.Parallel()
			s, next := replaceable(t)
			for _, step := range replacing[:i+1] {
				if err := step.do(s, next); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
			}
			for range 2 {
				for _, err := range []error{s.PutBack(nora, "state", "logs"), s.Drop(nora)} {
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			holds(t, s, "{}")
		})
	}
}

// TestRemoveTakesTheAside: keys and state of a worker that is ended in the middle
// go with it.
func TestRemoveTakesTheAside(t *testing.T) {
	t.Parallel()
	s, next := replaceable(t)
	for _, err := range []error{s.SetAside(nora), next.Promote(), next.Sync(), s.Remove(nora)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{staging, aside, instances} {
		if left, err := os.ReadDir(filepath.Join(s.dir, dir)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}
