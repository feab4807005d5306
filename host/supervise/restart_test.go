package supervise

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
)

// TestCrashLoop has workers that never stay: they end as failed, after bounded
// entries in the record.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		await   func(context.Context) error // what is heard of it before it ends
		reason  string
		entries int
	}{
		"after its first heartbeat":  {nil, "10 restarts without 1h0m0s of health: exit code 3; its log ends: bye", 2*10 + 2},
		"before its first heartbeat": {silence, "10 restarts without 1h0m0s of health: it ended before its first heartbeat: exit code 3; its log ends: bye", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			w := g.worker(worker.StateLive)
			g.launcher.diesAt = func(int) bool { return true }
			g.pulse.await = test.await
			g.Keep(w)
			g.launcher.end(w.Serial, 3)
			eventually(t, "failed", func() bool { return g.row(w.Serial).State == worker.StateFailed })
			g.letGo(w.Serial)
			if n := g.launcher.started(w.Serial); n != 10 {
				t.Errorf("%d starts", n)
			}
			entries := g.entries()
			last := entries[len(entries)-1]
			if len(entries) != test.entries || last.Kind != record.WorkerFailed || last.Reason != test.reason {
				t.Errorf("%d entries, the last is %s: %s", len(entries), last.Kind, last.Reason)
			}
			if row := g.row(w.Serial); row.StateReason != test.reason {
				t.Errorf("reason %q", row.StateReason)
			}
		})
	}
}

// silence is a worker of which nothing is heard.
func silence(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestHealthyWorkersAreNotCounted ends a worker far more often than it may be
// restarted, but each time after it was healthy.
func TestHealthyWorkersAreNotCounted(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.healthy, g.first = 0, time.Hour
	w := g.worker(worker.StateLive)
	g.Keep(w)
	for n := range 3 * g.restarts {
		g.launcher.end(w.Serial, 1)
		g.is(w.Serial, worker.StateLive, n+1)
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.first = time.Hour
	w := g.worker(worker.StateLive)
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateLive, 1)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateRestarting, 1)
	time.Sleep(20 * time.Millisecond)
	if n := g.launcher.started(w.Serial); n != 1 {
		t.Fatalf("%d starts: the second did not wait", n)
	}
	g.Release(w.Serial) // must not wait for the hour
	row := g.row(w.Serial)
	g.Keep(row)
	time.Sleep(20 * time.Millisecond)
	if n := g.launcher.started(w.Serial); n != 1 {
		t.Fatalf("%d starts: another host did not wait", n)
	}
	g.Release(w.Serial)
	row.RestartTries = 0 // somebody has asked for it
	g.Keep(row)
	g.is(w.Serial, worker.StateLive, 2)
}

// TestTriesOutliveHosts hands a worker over that crashes in a loop, as the end of
// a host does: all hosts together try no more often than one.
func TestTriesOutliveHosts(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	g.launcher.diesAt = func(int) bool { return true }
	g.launcher.end(w.Serial, 3)
	hosts := 0
	for ; g.row(w.Serial).State != worker.StateFailed; hosts++ {
		if hosts > 10 {
			t.Fatalf("%d tries at host %d", g.row(w.Serial).RestartTries, hosts)
		}
		before := g.row(w.Serial).RestartTries
		g.Keep(g.row(w.Serial))
		eventually(t, "another try", func() bool {
			row := g.row(w.Serial)
			return row.RestartTries >= before+2 || row.State == worker.StateFailed
		})
		g.Release(w.Serial)
	}
	// A try that ends with the host is not the worker's.
	if n := g.launcher.started(w.Serial); n > 10+hosts || g.row(w.Serial).RestartTries != 10 {
		t.Errorf("%d starts, %d tries", n, g.row(w.Serial).RestartTries)
	}
}

// TestHealthIsWrittenDown: no later host holds against a worker what it got over.
func TestHealthIsWrittenDown(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.healthy = 100 * time.Millisecond
	w := g.worker(worker.StateLive)
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateLive, 1)
	eventually(t, "no tries are held against it", func() bool { return g.row(w.Serial).RestartTries == 0 })
}

func TestPace(t *testing.T) {
	t.Parallel()
	if got := newPace(defaultTiming(), 3).delay(); got < 32*time.Second || got > 48*time.Second {
		t.Errorf("pause after 3 tries is %s", got)
	}
	p := newPace(defaultTiming(), 0)
	want := []time.Duration{0, 10, 20, 40, 80, 160, 300, 300, 300, 300}
	different := false
	for range 2 {
		for i, pause := range want {
			pause *= time.Second
			got := p.delay()
			if d := (got - pause).Abs(); d > time.Duration(float64(pause)*jitter)+1 {
				t.Errorf("pause %d is %s, want %s", i, got, pause)
			} else if d > 0 {
				different = true
			}
			p.lived(10*time.Minute - 1)
		}
		p.count = 7
		p.lived(10 * time.Minute)
		if p.count != 0 {
			t.Errorf("%d restarts are held against a healthy worker", p.count)
		}
	}
	if !different {
		t.Error("no jitter")
	}
}

func TestCorruptWorkerFails(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	g.pulse.await = func(context.Context) error {
		return fmt.Errorf("config.json: %s: %w", strings.Repeat("é\xff", 70_000), worker.ErrCorrupt)
	}
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateFailed, 0)
	g.letGo(w.Serial)
	if n := g.launcher.started(w.Serial); n != 1 {
		t.Errorf("%d starts", n)
	}
	if reason := g.row(w.Serial).StateReason; !strings.HasPrefix(reason, "config.json: é") || len(reason) > record.MaxText || !utf8.ValidString(reason) {
		t.Errorf("reason of %d bytes: %.40q", len(reason), reason)
	}
	if d := cmp.Diff([]record.Kind{record.WorkerLost, record.WorkerFailed}, g.kinds()); d != "" {
		t.Error(d)
	}
}

// TestRegistryAway fails writes for a while: nothing of what they say is lost.
func TestRegistryAway(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	g.rows.full.Store(20)
	g.pulse.await = func(context.Context) error {
		g.rows.full.Store(20)
		return nil
	}
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateLive, 1)
	if d := cmp.Diff([]record.Kind{record.WorkerLost, record.WorkerRestarted}, g.kinds()); d != "" {
		t.Error(d)
	}
	if n := g.rows.tried.Load(); n != 21+21 {
		t.Errorf("%d writes tried", n)
	}
	// Neither does it keep the worker from being released.
	g.rows.full.Store(1 << 30)
	g.launcher.end(w.Serial, 1)
	tried := g.rows.tried.Load()
	eventually(t, "it tries", func() bool { return g.rows.tried.Load() > tried+3 })
	g.Release(w.Serial)
}

// TestLauncherAway has a launcher that is away for longer than a worker may take
// to be healthy: that is not held against the worker.
func TestLauncherAway(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	var waits, stops atomic.Int32
	away := fmt.Errorf("containerd: %w", worker.ErrUnavailable)
	g.launcher.onWait = func() error {
		if waits.Add(1) < 5 {
			return away
		}
		return nil
	}
	g.launcher.onStop = func() error {
		if stops.Add(1) < 25 {
			return away
		}
		return nil
	}
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateLive, 1)
	if d := cmp.Diff([]record.Kind{record.WorkerLost, record.WorkerRestarted}, g.kinds()); d != "" {
		t.Error(d)
	}
}

// TestFailedWorkerIsStopped insists that a worker which is failed does not run.
func TestFailedWorkerIsStopped(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	var stops atomic.Int32
	g.launcher.onStop = func() error {
		if n := stops.Add(1); n > 1 && n < 5 {
			return errors.New("it does not end")
		}
		return nil
	}
	g.pulse.await = func(context.Context) error { return worker.ErrCorrupt }
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	g.is(w.Serial, worker.StateFailed, 0)
	g.launcher.mu.Lock()
	defer g.launcher.mu.Unlock()
	if g.launcher.open[w.Serial] {
		t.Error("it runs")
	}
}

// TestManyDeadWorkers is a host that starts where nothing lives any more.
func TestManyDeadWorkers(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	var now, most atomic.Int32
	full, open := make(chan struct{}), make(chan struct{})
	fill := sync.OnceFunc(func() { close(full) })
	g.pulse.await = func(ctx context.Context) error {
		defer now.Add(-1)
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == restartsAtOnce {
			fill()
		}
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var all []worker.Worker
	for range 3 * restartsAtOnce {
		w := g.worker(worker.StateLive)
		g.launcher.end(w.Serial, 1)
		all = append(all, w)
	}
	for _, w := range all {
		g.Keep(w)
	}
	<-full
	eventually(t, "all are known to be lost", func() bool { return len(g.kinds()) == len(all) })
	// Whoever waits can still be released.
	g.Release(all[0].Serial)
	time.Sleep(20 * time.Millisecond) // time for one too many to begin
	if n := most.Load(); n != restartsAtOnce {
		t.Errorf("%d restarts at once", n)
	}
	close(open)
	for _, w := range all[1:] {
		g.is(w.Serial, worker.StateLive, 1)
	}
}
