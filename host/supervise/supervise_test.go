package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

func TestEndedWorkerComesBack(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.first = time.Hour // the first restart does not wait for it
	w := g.worker(worker.StateLive)
	g.Keep(w)
	g.Keep(w)
	g.launcher.end(w.Serial, 7)
	g.is(w.Serial, worker.StateLive, 1)
	if n := g.launcher.started(w.Serial); n != 1 {
		t.Errorf("%d starts", n)
	}
	entries := g.entries()
	if d := cmp.Diff([]record.Kind{record.WorkerLost, record.WorkerRestarted}, g.kinds()); d != "" {
		t.Fatal(d)
	}
	if entries[0].Reason != "exit code 7" {
		t.Errorf("reason %q", entries[0].Reason)
	}
	// The record is told which worker, not once more all about it.
	for _, e := range entries {
		if d := cmp.Diff(record.NameOf(w), e.Worker); d != "" {
			t.Error(d)
		}
	}
}

func TestRestartInterruptedByTheHostsEnd(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateRestarting)
	g.Keep(w)
	g.is(w.Serial, worker.StateLive, 1)
	if n := g.launcher.started(w.Serial); n != 1 {
		t.Errorf("%d starts", n)
	}
}

func TestSilentWorkerComesBack(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	g.pulse.missed.Store(2)
	g.Keep(w)
	// One that answers pings is busy, not dead.
	time.Sleep(20 * g.Interval)
	if n := g.launcher.started(w.Serial); n != 0 {
		t.Fatalf("%d starts of a worker that answers", n)
	}
	g.pulse.await = func(context.Context) error {
		g.pulse.missed.Store(0)
		return nil
	}
	g.pulse.deaf.Store(true)
	g.is(w.Serial, worker.StateLive, 1)
	if reason := g.entries()[0].Reason; reason != "2 heartbeats missed and a ping not answered" {
		t.Errorf("reason %q", reason)
	}
}

// TestWorkerOfOthersIsLeftAlone changes a worker's state behind the supervisor's
// back, as the forge does when it retires one.
func TestWorkerOfOthersIsLeftAlone(t *testing.T) {
	t.Parallel()
	become := func(g *rig, serial worker.Serial, state worker.State) {
		err := g.rows.Registry.Update(context.Background(), func(tx *registry.Tx) error { return tx.SetState(serial, state, "others'") })
		if err != nil {
			g.t.Error(err)
		}
	}
	for _, state := range []worker.State{worker.StateRetiring, worker.StateRetired, worker.StateFailed, worker.StateForging} {
		t.Run(string(state)+" before it ends", func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			w := g.worker(worker.StateLive)
			g.Keep(w)
			become(g, w.Serial, state)
			g.launcher.end(w.Serial, 1)
			g.letGo(w.Serial)
			if row := g.row(w.Serial); row.State != state || row.StateReason != "others'" || row.Restarts != 0 {
				t.Errorf("row %+v", row)
			}
			if n, kinds := g.launcher.started(w.Serial), g.kinds(); n != 0 || len(kinds) != 0 {
				t.Errorf("%d starts, entries %v", n, kinds)
			}
		})
		t.Run(string(state)+" while it is restarted", func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			w := g.worker(worker.StateLive)
			g.launcher.onStart = func(serial worker.Serial, _ int) error {
				become(g, serial, state)
				return nil
			}
			g.Keep(w)
			g.launcher.end(w.Serial, 1)
			g.letGo(w.Serial)
			if row := g.row(w.Serial); row.State != state || row.StateReason != "others'" || row.Restarts != 0 {
				t.Errorf("row %+v", row)
			}
			if d := cmp.Diff([]record.Kind{record.WorkerLost}, g.kinds()); d != "" {
				t.Error(d)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		t.Parallel()
		g := newRig(t)
		w := g.worker(worker.StateLive)
		err := g.rows.Registry.Update(t.Context(), func(tx *registry.Tx) error { return tx.DeleteWorker(w.Serial) })
		if err != nil {
			t.Fatal(err)
		}
		g.Keep(w)
		g.launcher.end(w.Serial, 1)
		g.letGo(w.Serial)
	})
}

// TestCrashLoop has workers that never stay: they end as failed, after bounded
// entries in the record.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		await   func(context.Context) error // what is heard of it before it ends
		reason  string
		entries int
	}{
		"after its first heartbeat":  {nil, "10 restarts without 1h0m0s of health: exit code 3", 2*10 + 2},
		"before its first heartbeat": {silence, "10 restarts without 1h0m0s of health: it ended before its first heartbeat: exit code 3", 2},
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
	g.Keep(g.row(w.Serial))
	g.is(w.Serial, worker.StateLive, 2)
}

func TestPace(t *testing.T) {
	t.Parallel()
	p := newPace(defaultTiming())
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
	if n := g.rows.tried.Load(); n != 42 {
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

// TestCloseMeetsKeep closes a supervisor that is asked to keep workers meanwhile:
// once it is closed, nothing of it goes on.
func TestCloseMeetsKeep(t *testing.T) {
	t.Parallel()
	l := newLauncher()
	for i := range 8 {
		l.runs(worker.Serial(fmt.Sprint(i)))
	}
	for range 50 {
		s := New(Config{Launcher: l, Pulse: &pulse{}, Interval: time.Hour})
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				for i := range 8 {
					s.Keep(worker.Worker{Serial: worker.Serial(fmt.Sprint(i))})
				}
			})
		}
		s.Close()
		s.mu.Lock()
		left := len(s.kept)
		s.mu.Unlock()
		if left != 0 {
			t.Fatalf("%d workers are kept by a closed supervisor", left)
		}
		asking.Wait()
		s.Close()
	}
	// A Keep that has begun is waited for: until it has the lock no more, the
	// supervisor is not closed.
	s := New(Config{})
	s.mu.Lock()
	var closing sync.WaitGroup
	closing.Go(s.Close)
	time.Sleep(20 * time.Millisecond) // time for one that does not wait
	if s.ctx.Err() != nil {
		t.Error("closed in the middle of a Keep")
	}
	s.mu.Unlock()
	closing.Wait()
	if s.ctx.Err() == nil {
		t.Error("not closed")
	}
}

func TestReleaseIsTheEnd(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	entered := make(chan struct{}, 100)
	var inside atomic.Int32
	g.pulse.await = func(ctx context.Context) error {
		inside.Add(1)
		defer inside.Add(-1)
		entered <- struct{}{}
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // long enough for one who does not wait
		return ctx.Err()
	}
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	<-entered
	var releasing sync.WaitGroup
	for range 3 { // each caller may rely on it
		releasing.Go(func() {
			g.Release(w.Serial)
			if inside.Load() != 0 {
				t.Error("released, but acted upon")
			}
		})
	}
	releasing.Wait()
	if d := cmp.Diff([]record.Kind{record.WorkerLost}, g.kinds()); d != "" {
		t.Error(d)
	}
	g.Release(w.Serial)
	g.Release("DMN-TP-1-00000000-00000")
}

// TestChangedHearsOfEveryTurn tells whoever mirrors the rows.
func TestChangedHearsOfEveryTurn(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	w := g.worker(worker.StateLive)
	var mu sync.Mutex
	var states []worker.State
	g.Changed = func(serial worker.Serial) {
		mu.Lock()
		defer mu.Unlock()
		states = append(states, g.row(serial).State)
	}
	g.Keep(w)
	g.launcher.end(w.Serial, 1)
	eventually(t, "both turns", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(states, []worker.State{worker.StateRestarting, worker.StateLive})
	})
}
