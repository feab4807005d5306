package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// hang stops a containerd where it is.
func hang(t *testing.T, pid int) {
	t.Helper()
	must(t, unix.Kill(pid, unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) }) // or nothing could be removed
}

// TestContainerdHangs: who waits for it is told what to do, it is killed after a
// while, and workers run on; so does one that the next launcher finds.
func TestContainerdHangs(t *testing.T) {
	t.Parallel()
	quick := pulse{every: 50 * time.Millisecond, answer: 5 * time.Second, patience: 5 * time.Second, start: 5 * time.Second}
	b := launchtest.NewBench(t, func(c launchtest.Config) (launch.Launcher, error) {
		return newWith(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Shim: os.Getenv(envShim), Logger: c.Logger},
			diskLimits{bytes: launch.DiskBytes, files: launch.DiskFiles}, quick)
	})
	g := b.Guest()
	s, _ := b.Status(g.Spec.Serial)
	first := containerdPID(t, b)
	hang(t, first)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.Launcher.List(ctx); !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), fmt.Sprintf("kill -KILL %d ", first)) {
		t.Errorf("list: %v", err)
	}
	g.Tell("ping")
	launchtest.Eventually(t, "it is started again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := b.Launcher.List(ctx)
		return err == nil
	})
	second := containerdPID(t, b)
	if second == first {
		t.Error("it was not killed")
	}
	must(t, b.Launcher.Close())
	hang(t, second)
	b.Reopen()
	if third := containerdPID(t, b); third == second {
		t.Error("the one that was found was not killed")
	}
	if now, _ := b.Status(g.Spec.Serial); now.PID != s.PID {
		t.Errorf("the worker was process %d and is %d", s.PID, now.PID)
	}
}
