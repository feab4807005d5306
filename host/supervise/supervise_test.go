package supervise

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	for given, want := range map[string]string{
		"":                                    "it was being restarted",
		"exit code 3":                         "it was being restarted: exit code 3",
		"it was being restarted: exit code 3": "it was being restarted: exit code 3",
	} {
		g := newRig(t)
		w := g.worker(worker.StateRestarting)
		w.StateReason = given
		g.Keep(w)
		g.is(w.Serial, worker.StateLive, 1)
		if n := g.launcher.started(w.Serial); n != 1 {
			t.Errorf("%d starts", n)
		}
		if reason := g.entries()[0].Reason; reason != want {
			t.Errorf("reason %q, want %q", reason, want)
		}
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
	for _, state := range []worker.State{worker.StateRetiring, worker.StateRetired, worker.StateFailed, worker.StateForging, worker.StateStopped, worker.StateUpgrading} {
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
