package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
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

// TestApart: only the process that is started gets the other mounts, and no thread
// of this one keeps them.
func TestApart(t *testing.T) {
	t.Parallel()
	hybrid, err := isHybrid()
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			err := apart(hideUnified, func() error {
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
	if _, err := os.Stat(filepath.Join(unified, "cgroup.procs")); hybrid && err != nil {
		t.Error(err)
	}
	if now, err := os.Readlink("/proc/self/ns/mnt"); err != nil || now != own {
		t.Errorf("the process is in another namespace: %s, %v", now, err)
	}
	failed := errors.New("no")
	if err := apart(hideUnified, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error of the start: %v", err)
	}
	never := func() error { t.Error("started in mounts that are not changed"); return nil }
	if err := apart(func() error { return failed }, never); !errors.Is(err, failed) {
		t.Errorf("error of the change: %v", err)
	}
}

// TestGuard: what is guarded can be executed and not be written to, there alone.
func TestGuard(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	err := apart(func() error { return guard(path) }, func() error {
		if err := write(); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to it: %v", err)
		}
		return exec.Command(path).Run()
	})
	if err != nil {
		t.Error(err)
	}
	if err := write(); err != nil {
		t.Errorf("elsewhere: %v", err)
	}
	if err := apart(func() error { return guard(path + ".gone") }, func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("guard of nothing: %v", err)
	}
}

// TestRuntimeIsGuarded: shims, which are containerd's children, execute a runtime
// that nobody can write to, whoever comes by its descriptor, and one that knows.
func TestRuntimeIsGuarded(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	p := own(b)
	b.Guest()
	processes, err := p.shims("")
	if err != nil {
		t.Fatal(err)
	}
	running, err := p.find()
	if err != nil {
		t.Fatal(err)
	}
	if processes = append(processes, running...); len(processes) != 2 {
		t.Fatalf("%d processes", len(processes))
	}
	for _, process := range processes {
		t.Cleanup(func() { _ = process.Close() })
		pid := process.Identity().PID
		var fs unix.Statfs_t // to open it for writing would say that it runs, if it does
		if err := unix.Statfs(fmt.Sprintf("/proc/%d/root%s", pid, p.runtime), &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("%q: the runtime can be written to: flags %#x, %v", pidfd.Cmdline(pid), fs.Flags, err)
		}
		if env := pidfd.Environ(pid); !slices.Contains(env, guardedEnv) {
			t.Errorf("%q: its environment is %q", pidfd.Cmdline(pid), env)
		}
	}
}
