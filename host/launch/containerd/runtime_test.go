package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

func TestFindRuntime(t *testing.T) {
	t.Parallel()
	for _, name := range []string{Crun, Runc} {
		path, version, err := findRuntime(t.Context(), name)
		if err != nil || filepath.Base(path) != name || !strings.HasPrefix(version, name+" 1.") {
			t.Errorf("%s: %s, %q, %v", name, path, version, err)
		}
	}
	if path, _, err := findRuntime(t.Context(), ""); err != nil || filepath.Base(path) != Crun {
		t.Errorf("by itself: %s, %v", path, err)
	}
	if _, _, err := findRuntime(t.Context(), "docker"); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("docker: %v", err)
	}
}

// TestWithoutUnified: only the process that is started gets the other mounts, and
// no thread of this one keeps them.
func TestWithoutUnified(t *testing.T) {
	t.Parallel()
	hybrid, err := isHybrid()
	if err != nil {
		t.Fatal(err)
	}
	if !hybrid { // then nothing may ask for it
		t.Log("not a hybrid: nothing to hide")
		return
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			err := withoutUnified(func() error {
				there, err := os.Readlink("/proc/thread-self/ns/mnt")
				if err == nil && there == own {
					err = errors.New("same mount namespace")
				}
				if _, statErr := os.Stat(filepath.Join(unified, "cgroup.procs")); statErr == nil {
					err = errors.Join(err, errors.New("it is still there"))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(filepath.Join(unified, "cgroup.procs")); err != nil {
		t.Error(err)
	}
	if now, err := os.Readlink("/proc/self/ns/mnt"); err != nil || now != own {
		t.Errorf("the process is in another namespace: %s, %v", now, err)
	}
	failed := errors.New("no")
	if err := withoutUnified(func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error of the start: %v", err)
	}
}
