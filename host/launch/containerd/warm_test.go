package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// warm makes a worker's container beforehand, as the forge does: while its folder
// is elsewhere. It gives the worker's spec and the container's first process.
func warm(t *testing.T, b *launchtest.Bench) (launch.Spec, uint32) {
	t.Helper()
	spec, early := elsewhere(t, b)
	if err := b.Launcher.Warm(b.Context(), early); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(early.Dir, spec.Dir); err != nil {
		t.Fatal(err)
	}
	return spec, first(t, b, spec.Serial)
}

// elsewhere is a worker's spec, and the same while its folder is not in its place yet.
func elsewhere(t *testing.T, b *launchtest.Bench) (spec, early launch.Spec) {
	t.Helper()
	spec = b.Spec()
	early = spec
	early.Dir = filepath.Join(b.Config.DataDir, "workers", ".warm", string(spec.Serial))
	if err := errors.Join(os.MkdirAll(filepath.Dir(early.Dir), 0o700), os.Rename(spec.Dir, early.Dir)); err != nil {
		t.Fatal(err)
	}
	return spec, early
}

// first is the first process of a container.
func first(t *testing.T, b *launchtest.Bench, serial worker.Serial) uint32 {
	t.Helper()
	task, err := launcher(b).task(b.Context(), serial)
	if err != nil {
		t.Fatal(err)
	}
	return task.Pid
}

// TestClaim: a worker that gets the container that was made beforehand is caged as
// any other, writes its log, and can be stopped and started.
func TestClaim(t *testing.T) {
	for _, runtime := range []string{Crun, Runc} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			b := launchtest.NewBench(t, with(runtime))
			other := b.Guest()
			spec, pid := warm(t, b)
			if _, known := b.Status(spec.Serial); known {
				t.Error("it is listed before anybody has created it")
			}
			g := b.Start(spec)
			if now := first(t, b, spec.Serial); now != pid {
				t.Errorf("its process is %d, the one made beforehand was %d", now, pid)
			}
			checkCage(t, b, g, other)
			const size = 1 << 20
			g.Tell(fmt.Sprint("flood ", size))
			launchtest.Eventually(t, "its log is in its folder", func() bool { return len(b.LogText(spec)) >= size })
			b.Stop(spec.Serial, 0)
			if err := b.Launcher.Start(b.Context(), spec.Serial); err != nil {
				t.Fatal(err)
			}
			g.AwaitUp()
			checkCage(t, b, g, other)
		})
	}
}

// TestUnfit: what is not as the worker needs it is not claimed, but made anew.
func TestUnfit(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	for name, spoil := range map[string]func(t *testing.T, s *launch.Spec, pid uint32){
		"other limits": func(_ *testing.T, s *launch.Spec, _ uint32) { s.Limits.PIDs = 100 },
		"its process has ended": func(t *testing.T, _ *launch.Spec, pid uint32) {
			if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			launchtest.Eventually(t, "it is gone", func() bool { return unix.Kill(int(pid), 0) != nil })
		},
		"another folder": func(t *testing.T, s *launch.Spec, _ uint32) {
			before := s.Dir + ".before"
			if err := errors.Join(os.Rename(s.Dir, before), exec.Command("cp", "-a", before, s.Dir).Run()); err != nil {
				t.Fatal(err)
			}
		},
		"another folder in it": func(t *testing.T, s *launch.Spec, _ uint32) {
			run := filepath.Join(s.Dir, launch.RunDir)
			if err := errors.Join(os.Remove(run), os.Mkdir(run, 0o700), os.Chown(run, s.UID, s.UID)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := b.For(t)
			spec, pid := warm(t, b)
			spoil(t, &spec, pid)
			g := b.Start(spec)
			g.ExpectProcesses(1)
			if first(t, b, spec.Serial) == pid {
				t.Error("it was claimed")
			}
		})
	}
}

// TestWarmIsNobodys: what was made beforehand keeps its binary, and is removed by
// whoever opens the launcher next, and by Remove and Down.
func TestWarmIsNobodys(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	left, _ := warm(t, b)
	if err := b.Launcher.Discard(b.Context(), b.Image.Digest); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("discard: %v", err)
	}
	if err := b.Launcher.Close(); err != nil {
		t.Fatal(err)
	}
	b.Reopen()
	removed, _ := warm(t, b)
	b.Remove(removed.Serial)
	l := launcher(b)
	for _, spec := range []launch.Spec{left, removed} {
		if _, err := l.task(b.Context(), spec.Serial); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("there is a task: %v", err)
		}
		if paths := l.leftovers(spec.Serial); len(paths) > 0 {
			t.Errorf("left: %q", paths)
		}
		if _, err := l.client.ContainerService().Get(b.Context(), string(spec.Serial)); !isNotFound(err) {
			t.Errorf("there is a container: %v", err)
		}
	}
	b.Start(left) // its serial is as good as any other
	warm(t, b)    // Down has something to remove
}

// TestContainerdDiesWhileWarming: whatever of a container was made, it can be claimed
// or it is removed, when containerd is there again.
func TestContainerdDiesWhileWarming(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	b.Remove(b.Guest().Spec.Serial) // the image and a shim
	for _, after := range []time.Duration{0, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond} {
		spec, early := elsewhere(t, b)
		warmed := make(chan error, 1)
		go func() { warmed <- b.Launcher.Warm(b.Context(), early) }()
		time.Sleep(after) // where it is then is as it comes
		kill(t, containerdPID(t, b))
		err := <-warmed
		launchtest.Eventually(t, "containerd is back", func() bool {
			_, err := b.Launcher.List(b.Context())
			return err == nil
		})
		if err == nil {
			if err := os.Rename(early.Dir, spec.Dir); err != nil {
				t.Fatal(err)
			}
			b.Start(spec).Report()
		}
		t.Logf("after %s: %v", after, err)
		b.Remove(spec.Serial)
		if paths := launcher(b).leftovers(spec.Serial); len(paths) > 0 {
			t.Errorf("after %s left: %q", after, paths)
		}
	}
}
