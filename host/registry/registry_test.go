package registry

import (
	"context"
	"database/sql/driver"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"modernc.org/sqlite"
)

// hold is what the SQL function hold() does in the middle of a statement.
var hold atomic.Pointer[func()]

func TestMain(m *testing.M) {
	sqlite.MustRegisterScalarFunction("hold", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		if args[0] == int64(500) {
			(*hold.Load())()
		}
		return args[0], nil
	})
	if life := os.Getenv(childEnv); life != "" {
		os.Exit(liveAsChild(life, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

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

// openFiles lists what this process has open below dir.
func openFiles(t *testing.T, dir string) []string {
	t.Helper()
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, d := range descriptors {
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && strings.HasPrefix(target, dir) {
			open = append(open, target)
		}
	}
	return open
}

// A statement that nobody closes keeps its file open for ever, even when the
// connection was closed.
func TestCloseLeavesOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	r := openAt(t, path)
	for range 20 { // a failed group changes the connection
		if err := r.Update(t.Context(), func(tx *Tx) error {
			_, err := tx.conn.ExecContext(tx.ctx, "ROLLBACK")
			return err
		}); err == nil {
			t.Fatal("no savepoint to release, no error")
		}
		update(t, r, append1("x", new(uint64)))
	}
	if open := openFiles(t, filepath.Dir(path)); len(open) > 8 {
		t.Errorf("failed groups leave files open: %q", open)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if open := openFiles(t, filepath.Dir(path)); len(open) != 0 {
		t.Errorf("still open: %q", open)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v: the write-ahead log is not taken in", left, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if log := entries(t, openAt(t, path)); len(log) != 20 {
		t.Errorf("%d entries", len(log))
	}
}
