package containerd

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// glutton starts a worker with little memory.
func glutton(b *launchtest.Bench) *launchtest.Guest {
	spec := b.Spec()
	spec.Limits = worker.Limits{MemoryBytes: 64 << 20}
	return b.Start(spec)
}

// losesChild has a child of the worker killed for memory, which the worker outlives.
func losesChild(t *testing.T, b *launchtest.Bench, g *launchtest.Guest) {
	t.Helper()
	before, _ := launcher(b).cgroups.oomKills(g.Spec.Serial)
	if how := g.Ask("allocate-apart 200"); how != "signal: killed" {
		t.Fatalf("its child: %s", how)
	}
	if n, _ := launcher(b).cgroups.oomKills(g.Spec.Serial); n <= before {
		t.Fatalf("%d kills for memory in its group, there were %d before", n, before)
	}
	g.AwaitUp()
}

// killed kills the worker from outside.
func killed(t *testing.T, b *launchtest.Bench, g *launchtest.Guest) launch.Exit {
	t.Helper()
	s, _ := b.Status(g.Spec.Serial)
	must(t, unix.Kill(s.PID, unix.SIGKILL))
	return b.Wait(g.Spec.Serial)
}

// TestChildKilledForMemory: a worker that is killed from outside is not out of memory
// because a child of its once was; one that takes too much itself is.
func TestChildKilledForMemory(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	l, g := launcher(b), glutton(b)
	serial := g.Spec.Serial
	again := func() {
		b.Stop(serial, 0)
		must(t, l.Start(b.Context(), serial))
		g.AwaitUp()
	}
	losesChild(t, b, g)
	l.lookAtKills()
	l.lookAtKills()
	if exit := killed(t, b, g); exit.Signal != "SIGKILL" || exit.OOMKilled {
		t.Errorf("killed by hand, it ended so: %s", exit)
	}
	again()
	losesChild(t, b, g)
	l.lookAtKills()
	l.lookAtKills()
	g.Provoke("allocate 200")
	if exit := b.Wait(serial); !exit.OOMKilled {
		t.Errorf("it took too much after a child had, and ended so: %s", exit)
	}
	again() // and what there was before is forgotten
	g.Provoke("allocate 200")
	if exit := b.Wait(serial); !exit.OOMKilled {
		t.Errorf("it took too much, and ended so: %s", exit)
	}
	again()
	l.lookAtKills()
	l.outlived.mu.Lock()
	defer l.outlived.mu.Unlock()
	if n := len(l.outlived.of); n != 0 {
		t.Errorf("kills of %d runs are remembered, of which none is left", n)
	}
}

// TestLooksAtTheDead: no later look makes of a kill one that was outlived.
func TestLooksAtTheDead(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := glutton(b)
	g.Provoke("allocate 200")
	first := b.Wait(g.Spec.Serial)
	for range 3 {
		launcher(b).lookAtKills()
	}
	if again := b.Wait(g.Spec.Serial); !first.OOMKilled || again != first {
		t.Errorf("it ended so: %s; and after later looks so: %s", first, again)
	}
}

// TestOutlived: what one look sees counts as outlived with the next one in the same run,
// because the first may have come between the kernel's kill and the end.
func TestOutlived(t *testing.T) {
	t.Parallel()
	var o outlived
	for i, step := range []struct {
		group uint64
		n     int
		want  int
	}{{7, 1, 0}, {7, 1, 1}, {7, 3, 1}, {7, 3, 3}, {8, 2, 0}, {8, 2, 2}} {
		o.note(aGroup, step.group, step.n)
		if got := o.kills(aGroup, step.group); got != step.want {
			t.Errorf("step %d: %d kills are outlived, want %d", i, got, step.want)
		}
	}
	if got := o.kills(aGroup, 9); got != 0 {
		t.Errorf("%d kills are outlived in a run without any", got)
	}
}

// TestChildKilledBeforeHost: the next host finds out what a worker has outlived.
func TestChildKilledBeforeHost(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := glutton(b)
	losesChild(t, b, g)
	must(t, b.Launcher.Close())
	b.Reopen()
	l := launcher(b)
	launchtest.Eventually(t, "the host has looked", func() bool {
		n, group := l.cgroups.oomKills(g.Spec.Serial)
		return l.outlived.kills(g.Spec.Serial, group) == n
	})
	if exit := killed(t, b, g); exit.Signal != "SIGKILL" || exit.OOMKilled {
		t.Errorf("it ended so: %s", exit)
	}
}

// TestStopAfterChildKilled: a stop that has to kill is told as that.
func TestStopAfterChildKilled(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := glutton(b)
	losesChild(t, b, g)
	g.Tell("ignore-term")
	b.Stop(g.Spec.Serial, 10*time.Millisecond)
	if exit := b.Wait(g.Spec.Serial); exit.Signal != "SIGKILL" || exit.OOMKilled {
		t.Errorf("it ended so: %s", exit)
	}
}
