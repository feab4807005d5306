package registry

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// openTest opens a registry in a folder of its own.
func openTest(t testing.TB) *Registry {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "registry.db"))
}

func openAt(t testing.TB, path string) *Registry {
	t.Helper()
	r, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// update runs a closure that must succeed.
func update(t testing.TB, r *Registry, closure func(*Tx) error) {
	t.Helper()
	if err := r.Update(t.Context(), closure); err != nil {
		t.Fatal(err)
	}
}

// entries reads the whole log and checks that it is dense.
func entries(t testing.TB, r *Registry) []string {
	t.Helper()
	var list []string
	for g, err := range r.Groups(context.Background(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if g.First != uint64(len(list)) || len(g.Entries) == 0 || g.At.IsZero() {
			t.Fatalf("group of %d at %d, %s, where entry %d is due", len(g.Entries), g.First, g.At, len(list))
		}
		for _, e := range g.Entries {
			list = append(list, string(e))
		}
	}
	return list
}

func TestSmoke(t *testing.T) {
	r := openTest(t)
	for i := range 3 {
		update(t, r, func(tx *Tx) error {
			index, err := tx.Append(fmt.Appendf(nil, "entry %d", i))
			if index != uint64(i) {
				t.Errorf("index %d, want %d", index, i)
			}
			return err
		})
	}
	if _, err := r.Worker(t.Context(), "x"); !errors.Is(err, worker.ErrNotFound) {
		t.Fatal(err)
	}
	if got := entries(t, r); len(got) != 3 {
		t.Fatal(got)
	}
}
