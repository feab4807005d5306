package whole

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestWhole: a file is always one that somebody wrote, nothing else is left in its
// folder, and nothing anywhere of a writer that died.
func TestWhole(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	path := filepath.Join(dir, "file")
	if err := WriteFile(path, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before its folder was prepared: %v", err)
	}
	if err := Clear(dir); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range byte(8) {
		writers.Go(func() {
			for range 20 {
				if err := WriteFile(path, bytes.Repeat([]byte{i}, 10_000)); err != nil {
					t.Error(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || len(got) != 10_000 || len(bytes.Trim(got, string(got[:1]))) > 0 {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	writers.Wait()
	died := filepath.Join(dir, unfinished, "left")
	if err := os.WriteFile(died, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Clear(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(died))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
}
