package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// TestCgroupsAreFound: without a hierarchy to look into there is no launcher.
func TestCgroupsAreFound(t *testing.T) {
	t.Parallel()
	c, err := newCgroups(cgroupRoot, "test")
	if err != nil || len(c.roots) == 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, root := range c.roots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			t.Error(err)
		}
	}
	bare := t.TempDir()
	if err := os.Mkdir(filepath.Join(bare, "memory"), 0o700); err != nil { // where nothing is mounted
		t.Fatal(err)
	}
	file := filepath.Join(bare, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mount := range []string{bare, filepath.Join(bare, "missing"), file} {
		if c, err := newCgroups(mount, "test"); !errors.Is(err, worker.ErrUnavailable) || worker.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v", mount, c, err)
		}
	}
}
