package forge

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// busy waits until something is done to each of these names.
func (r *rig) busy(names ...string) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.forge.work.mu.Lock()
		found := 0
		for _, name := range names {
			if r.forge.work.names[name] {
				found++
			}
		}
		r.forge.work.mu.Unlock()
		if found == len(names) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("nothing is done to %v", names)
		}
	}
}

// TestFreeze: a host that goes down begins nothing any more. Who only waits hears
// it at once, and what is under way is waited for, but not for ever.
func TestFreeze(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	began, done := make(chan struct{}), make(chan error)
	r.silent, r.onBeat = true, func() { close(began) }
	forge := func(name string, out chan<- error) {
		request := nora
		request.Name = name
		_, err := r.forge.Forge(t.Context(), request)
		out <- err
	}
	go forge("nora", done)
	<-began
	for len(r.forge.slots) < cap(r.forge.slots) {
		r.forge.slots <- struct{}{}
	}
	waiting := make(chan error, 2)
	go forge("nora", waiting)  // for its turn
	go forge("other", waiting) // for a place
	r.busy("other")
	ctx, cancel := context.WithCancel(t.Context())
	frozen := make(chan error, 1)
	go func() { frozen <- r.forge.Freeze(ctx) }()
	for range 2 {
		if err := <-waiting; !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(worker.HintOf(err), "next host") {
			t.Errorf("waiting when the host goes down: %v", err)
		}
	}
	cancel()
	if err := <-frozen; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "1 workers (nora)") || worker.HintOf(err) == "" {
		t.Errorf("frozen: %v", err)
	}
	if err := <-done; !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), "the host is going down") {
		t.Errorf("what was under way: %v", err)
	}
	r.nothingLeft("cut short", 0)
	if err := r.forge.Freeze(t.Context()); err != nil {
		t.Errorf("frozen, with nothing under way: %v", err)
	}
}

// TestFreezeWaits: what is under way has its time to end.
func TestFreezeWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	began, beat, done := make(chan struct{}), make(chan struct{}), make(chan error)
	r.onBeat = func() { close(began); <-beat }
	go func() {
		_, err := r.forge.Forge(t.Context(), nora)
		done <- err
	}()
	<-began
	frozen := make(chan error, 1)
	go func() { frozen <- r.forge.Freeze(t.Context()) }()
	<-r.forge.work.frozen
	close(beat)
	if err := <-done; err != nil {
		t.Errorf("what was under way: %v", err)
	}
	if err := <-frozen; err != nil {
		t.Errorf("frozen: %v", err)
	}
	w, err := r.registry.WorkerByName(t.Context(), "nora")
	if err != nil {
		t.Fatal(err)
	}
	r.whole(w)
	if _, err := r.forge.Retire(t.Context(), w.Serial, 0); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("retired: %v", err)
	}
}

// TestFreezeEndsGraces: a long grace does not outlive the time that a host which
// goes down gives to what is under way.
func TestFreezeEndsGraces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.launcher.lingers = true
	done := make(chan error, 1)
	go func() {
		_, err := r.forge.Stop(t.Context(), w.Serial, MaxWait)
		done <- err
	}()
	r.busy("nora")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.forge.Freeze(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("frozen: %v", err)
	}
	if err := <-done; err != nil || r.launcher.running[w.Serial] {
		t.Errorf("stopped: %v, running %t", err, r.launcher.running[w.Serial])
	}
}

// TestStopDrainsFirst: what a worker owes is waited for before it is told to end,
// and is left time of its grace to end then.
func TestStopDrainsFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	var waits []time.Duration
	r.onDrain = func(ctx context.Context) {
		deadline, _ := ctx.Deadline()
		waits = append(waits, time.Until(deadline).Round(time.Minute))
		if !r.launcher.running[w.Serial] || r.row(w.Serial).State != worker.StateStopped {
			t.Errorf("drained as %s, running: %t", r.row(w.Serial).State, r.launcher.running[w.Serial])
		}
	}
	for _, grace := range []time.Duration{30 * time.Minute, ownEnd} { // the second is too short to wait
		if _, err := r.forge.Stop(t.Context(), w.Serial, grace); err != nil || r.launcher.running[w.Serial] {
			t.Fatalf("stopped: %v, running: %t", err, r.launcher.running[w.Serial])
		}
		if _, err := r.forge.Start(t.Context(), w.Serial, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(waits, []time.Duration{30 * time.Minute}) {
		t.Errorf("waited for %s", waits)
	}
}

// TestMaxWait: nobody can ask for a grace or a timeout without end.
func TestMaxWait(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	const long = MaxWait + 1
	slow := Request{Name: "otto", Type: "template", ClassCode: "A1", Timeout: long}
	errs := map[string]error{}
	_, errs["forge"] = r.forge.Forge(t.Context(), slow)
	_, errs["plan"] = r.forge.Plan(t.Context(), slow)
	_, errs["stop"] = r.forge.Stop(t.Context(), w.Serial, long)
	_, errs["start"] = r.forge.Start(t.Context(), w.Serial, long)
	_, errs["restart"] = r.forge.Restart(t.Context(), w.Serial, long, 0)
	_, errs["restart in time"] = r.forge.Restart(t.Context(), w.Serial, 0, long)
	_, errs["retire"] = r.forge.Retire(t.Context(), w.Serial, long)
	_, _, errs["upgrade"] = r.forge.Upgrade(t.Context(), w.Serial, UpgradeRequest{Grace: long})
	_, _, errs["upgrade in time"] = r.forge.Upgrade(t.Context(), w.Serial, UpgradeRequest{Timeout: long})
	for what, err := range errs {
		if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), "at most 1h0m0s") || worker.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.whole(w)
}
