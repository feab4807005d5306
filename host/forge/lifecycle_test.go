package forge

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// forged is a live worker.
func (r *rig) forged() worker.Worker {
	r.t.Helper()
	made, err := r.forge.Forge(r.t.Context(), nora)
	if err != nil {
		r.t.Fatal(err)
	}
	return made.Worker
}

// row is what the registry says of a worker.
func (r *rig) row(s worker.Serial) worker.Worker {
	r.t.Helper()
	w, err := r.registry.Worker(r.t.Context(), s)
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

// set puts a worker into a state, as somebody else has left it.
func (r *rig) set(s worker.Serial, state worker.State, reason string) {
	r.t.Helper()
	err := r.registry.Update(r.t.Context(), func(tx *registry.Tx) error { return tx.SetState(s, state, reason) })
	if err != nil {
		r.t.Fatal(err)
	}
}

// become brings a live worker into a state in which it may be found.
func (r *rig) become(w worker.Worker, state worker.State) {
	r.t.Helper()
	switch state {
	case worker.StateStopped:
		if _, err := r.forge.Stop(r.t.Context(), w.Serial, 0); err != nil {
			r.t.Fatal(err)
		}
	case worker.StateFailed: // as the supervisor leaves it
		_ = r.launcher.Stop(r.t.Context(), w.Serial, 0)
		keeper{r}.Release(w.Serial)
		r.Detach(r.t.Context(), w.Serial)
		r.set(w.Serial, state, "it was bad")
	case worker.StateRestarting:
		_ = r.launcher.Stop(r.t.Context(), w.Serial, 0)
		r.set(w.Serial, state, "it was lost")
	}
}

// atRest checks that nothing of a worker runs, and that it has its port.
func (r *rig) atRest(s worker.Serial) {
	r.t.Helper()
	if r.launcher.running[s] || r.attached[s] || r.kept[s] {
		r.t.Errorf("worker %s at rest: running %t, session %t, kept %t", s, r.launcher.running[s], r.attached[s], r.kept[s])
	}
	if r.held[s] == nil {
		r.t.Errorf("worker %s has lost its port", s)
	}
}

func TestStopAndStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	for range 2 { // the second changes nothing
		stopped, err := r.forge.Stop(t.Context(), w.Serial, time.Second)
		if err != nil || stopped.State != worker.StateStopped || stopped.StateReason != "" {
			t.Fatalf("%+v, %v", stopped, err)
		}
		r.atRest(w.Serial)
	}
	if n := r.count(record.WorkerStopped); n != 1 || r.row(w.Serial).State != worker.StateStopped {
		t.Errorf("%d stops recorded, row %+v", n, r.row(w.Serial))
	}
	for range 2 {
		live, err := r.forge.Start(t.Context(), w.Serial, 0)
		if err != nil || live.State != worker.StateLive {
			t.Fatalf("%+v, %v", live, err)
		}
		r.whole(w)
	}
	if n := r.count(record.WorkerStarted); n != 1 {
		t.Errorf("%d starts recorded", n)
	}
	if _, err := r.forge.Stop(t.Context(), "DMN-TP-1-00000000-00000", 0); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("unknown worker: %v", err)
	}
}

// TestStartAfterDown: what a host that went down has removed of a stopped worker
// is made again.
func TestStartAfterDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.become(w, worker.StateStopped)
	if err := r.launcher.Remove(t.Context(), w.Serial); err != nil {
		t.Fatal(err)
	}
	if _, err := r.forge.Start(t.Context(), w.Serial, 0); err != nil {
		t.Fatal(err)
	}
	r.whole(w)
}

// TestStoppedStaysStopped: a host that died while it stopped or started a worker
// leaves it running; the next one ends it.
func TestStoppedStaysStopped(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateStopped, worker.StateFailed} {
		r := newRig(t)
		w := r.forged()
		r.set(w.Serial, state, "")
		r.die()
		if err := r.forge.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r.launcher.running[w.Serial] || r.row(w.Serial).State != state {
			t.Errorf("%s: running %t, row %+v", state, r.launcher.running[w.Serial], r.row(w.Serial))
		}
	}
}

// TestStopThatSticks: what cannot be ended now is ended later, and is stopped
// all the while.
func TestStopThatSticks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.launcher.stuck = errors.New("stuck")
	if _, err := r.forge.Stop(t.Context(), w.Serial, 0); !errors.Is(err, r.launcher.stuck) || !strings.Contains(err.Error(), "worker nora stays stopped") || worker.HintOf(err) == "" {
		t.Fatal(err)
	}
	if r.row(w.Serial).State != worker.StateStopped || r.kept[w.Serial] {
		t.Errorf("row %+v, kept %v", r.row(w.Serial), r.kept)
	}
	if err := r.forge.Recover(t.Context()); !errors.Is(err, r.launcher.stuck) {
		t.Errorf("recovered: %v", err)
	}
	r.launcher.stuck = nil
	if err := r.forge.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.atRest(w.Serial)
}

// TestStartThatFails: a worker that does not become healthy stays what it was.
func TestStartThatFails(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateStopped, worker.StateFailed} {
		r := newRig(t)
		r.launcher.says = "an old line\n"
		w := r.forged()
		r.become(w, state)
		before, entries := r.row(w.Serial), len(r.entries())
		r.launcher.bad, r.launcher.says = w.PluginDigest, "no luck\n"
		_, err := r.forge.Start(t.Context(), w.Serial, 0)
		if err == nil || !strings.Contains(err.Error(), "await heartbeat: the worker ended: exit code 7; its log ends: no luck") ||
			!strings.HasSuffix(err.Error(), "it stays "+string(state)) || worker.HintOf(err) == "" {
			t.Errorf("%s: %v", state, err)
		}
		r.atRest(w.Serial)
		if after := r.row(w.Serial); after.State != before.State || after.StateReason != before.StateReason || len(r.entries()) != entries {
			t.Errorf("%s: row %+v, entries %d of %d", state, after, len(r.entries()), entries)
		}
		r.launcher.bad = ""
		if _, err := r.forge.Start(t.Context(), w.Serial, 0); err != nil {
			t.Fatal(err)
		}
		r.whole(w)
		if r.row(w.Serial).StateReason != "" {
			t.Errorf("reason of a live worker: %q", r.row(w.Serial).StateReason)
		}
	}
}

// TestStartInTime: the time that is given is the time that is taken.
func TestStartInTime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.become(w, worker.StateStopped)
	r.onBeat = func() { time.Sleep(20 * time.Millisecond) } // longer than the time that is given
	if _, err := r.forge.Start(t.Context(), w.Serial, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Fatal(err)
	}
	r.atRest(w.Serial)
}

func TestRestart(t *testing.T) {
	t.Parallel()
	for state, kind := range map[worker.State]record.Kind{
		worker.StateLive: record.WorkerRestarted, worker.StateRestarting: record.WorkerRestarted,
		worker.StateStopped: record.WorkerStarted, worker.StateFailed: record.WorkerStarted,
	} {
		r := newRig(t)
		w := r.forged()
		r.become(w, state)
		again, err := r.forge.Restart(t.Context(), w.Serial, 0, 0)
		if err != nil || again.State != worker.StateLive {
			t.Errorf("%s: %+v, %v", state, again, err)
		}
		r.whole(w)
		if n := r.count(kind); n != 1 {
			t.Errorf("%s: %d entries %s of %+v", state, n, kind, r.entries())
		}
	}
}

// TestRestartThatFails: a worker that was live stays to be kept; one that was not
// stays what it was.
func TestRestartThatFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.launcher.bad = w.PluginDigest
	if _, err := r.forge.Restart(t.Context(), w.Serial, 0, 0); err == nil || !strings.Contains(err.Error(), "the host goes on trying") {
		t.Fatal(err)
	}
	if r.row(w.Serial).State != worker.StateRestarting || !r.kept[w.Serial] || !r.attached[w.Serial] || r.launcher.running[w.Serial] {
		t.Errorf("row %+v, kept %v, running %v", r.row(w.Serial), r.kept, r.launcher.running)
	}
	r.become(w, worker.StateStopped)
	if _, err := r.forge.Restart(t.Context(), w.Serial, 0, 0); err == nil || !strings.Contains(err.Error(), "it stays stopped") {
		t.Fatal(err)
	}
	r.atRest(w.Serial)
}

// TestNotNow: what is said of a worker that is not there yet, or no more.
func TestNotNow(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateForging, worker.StateRetiring, worker.StateRetired} {
		r := newRig(t)
		w := r.forged()
		r.set(w.Serial, state, "")
		_, stop := r.forge.Stop(t.Context(), w.Serial, 0)
		_, start := r.forge.Start(t.Context(), w.Serial, 0)
		_, restart := r.forge.Restart(t.Context(), w.Serial, 0, 0)
		_, _, upgrade := r.forge.Upgrade(t.Context(), w.Serial, UpgradeRequest{})
		for what, err := range map[string]error{"stop": stop, "start": start, "restart": restart, "upgrade": upgrade} {
			if !errors.Is(err, worker.ErrConflict) || worker.HintOf(err) == "" {
				t.Errorf("%s of a worker that is %s: %v", what, state, err)
			}
		}
		if r.row(w.Serial).State != state {
			t.Errorf("row %+v", r.row(w.Serial))
		}
	}
	r := newRig(t)
	w := r.forged()
	r.become(w, worker.StateRestarting)
	if _, err := r.forge.Start(t.Context(), w.Serial, 0); !errors.Is(err, worker.ErrConflict) || !strings.Contains(worker.HintOf(err), "restart nora") {
		t.Errorf("start of a worker that is being restarted: %v", err)
	}
}

// TestRetireThatSticks: the caller hears that it goes on, and it does.
func TestRetireThatSticks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.launcher.stuck = errors.New("stuck")
	if _, err := r.forge.Retire(t.Context(), w.Serial, 0); !errors.Is(err, r.launcher.stuck) || !strings.Contains(err.Error(), "worker nora stays retiring") || worker.HintOf(err) == "" {
		t.Fatal(err)
	}
	r.launcher.stuck = nil
	if err := r.forge.Recover(t.Context()); err != nil || r.row(w.Serial).State != worker.StateRetired {
		t.Errorf("%v, row %+v", err, r.row(w.Serial))
	}
}

// TestNotRecorded: what cannot be written is not done, and the caller hears what
// it was.
func TestNotRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	if err := r.registry.Close(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []worker.State{worker.StateStopped, worker.StateRetiring} {
		_, err := r.forge.turnTo(t.Context(), w, to, "", "")
		if err == nil || !strings.Contains(err.Error(), "record that worker nora is "+string(to)+": ") || worker.HintOf(err) == "" {
			t.Errorf("%v (hint %q)", err, worker.HintOf(err))
		}
	}
}

func TestRetireFromEveryState(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateLive, worker.StateRestarting, worker.StateFailed, worker.StateStopped, worker.StateUpgrading} {
		r := newRig(t)
		w := r.forged()
		if state == worker.StateUpgrading {
			r.upgradeSteps(w, "take over state")
		} else {
			r.become(w, state)
		}
		if _, err := r.forge.Retire(t.Context(), w.Serial, 0); err != nil {
			t.Errorf("%s: %v", state, err)
		}
		if len(r.launcher.running)+len(r.kept)+len(r.held) != 0 {
			t.Errorf("%s: left: %v %v %v", state, r.launcher.running, r.kept, r.held)
		}
		r.noJournal(w.Serial)
		for _, dir := range []string{".stage", ".aside", "instances"} {
			if left, err := os.ReadDir(filepath.Join(r.dir, "workers", dir)); err != nil || len(left) != 0 {
				t.Errorf("%s: left in %s: %v, %v", state, dir, left, err)
			}
		}
	}
}

func TestNoStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	request := nora
	request.NoStart = true
	plan, err := r.forge.Plan(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range plan.Steps {
		steps = append(steps, s.Step)
		if s.Step == "record" && !strings.Contains(s.Makes, "state stopped") {
			t.Errorf("plan: %+v", s)
		}
	}
	if text := strings.Join(steps, ", "); strings.Contains(text, "start") || strings.Contains(text, "container") {
		t.Errorf("plan: %s", text)
	}
	made, err := r.forge.Forge(t.Context(), request)
	if err != nil || made.Worker.State != worker.StateStopped {
		t.Fatalf("%+v, %v", made, err)
	}
	r.atRest(made.Worker.Serial)
	if r.count(record.Forge) != 1 || r.count(record.WorkerStopped) != 1 {
		t.Errorf("entries %+v", r.entries())
	}
	if again, err := r.forge.Forge(t.Context(), request); err != nil || !again.Existed {
		t.Errorf("again: %+v, %v", again, err)
	}
	r.die()
	if err := r.forge.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.launcher.running[made.Worker.Serial] {
		t.Error("it runs")
	}
	if _, err := r.forge.Start(t.Context(), made.Worker.Serial, 0); err != nil {
		t.Fatal(err)
	}
	if !r.launcher.running[made.Worker.Serial] || r.row(made.Worker.Serial).State != worker.StateLive {
		t.Errorf("row %+v", r.row(made.Worker.Serial))
	}
}

func TestLike(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.others = map[string]string{"1.0.0": strings.Repeat("ab", 32)}
	model := nora
	model.Version, model.Config = "1.0.0", []byte(`{"greeting":"ahoy"}`)
	made, err := r.forge.Forge(t.Context(), model)
	if err != nil {
		t.Fatal(err)
	}
	for name, r2 := range map[string]Request{
		"by name":   {Name: "tom", Like: "nora"},
		"by serial": {Name: "tim", Like: string(made.Worker.Serial)},
		"other":     {Name: "tam", Like: "nora", ClassCode: "B2", Version: "1.2.3", Config: []byte(`{"greeting":"hi"}`)},
	} {
		clone, err := r.forge.Forge(t.Context(), r2)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		w := clone.Worker
		want := []string{"template", "1.0.0", "A1", `{"greeting":"ahoy"}`}
		if name == "other" {
			want = []string{"template", "1.2.3", "B2", `{"greeting":"hi"}`}
		}
		if got := []string{w.Type, w.TypeVersion, string(w.ClassCode), string(w.Config)}; strings.Join(got, " ") != strings.Join(want, " ") || w.Serial == made.Worker.Serial {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if again, err := r.forge.Forge(t.Context(), r2); err != nil || !again.Existed {
			t.Errorf("%s again: %+v, %v", name, again, err)
		}
	}
	if _, err := r.forge.Forge(t.Context(), Request{Name: "x", Like: "nobody"}); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("like nobody: %v", err)
	}
	if _, err := r.forge.Forge(t.Context(), Request{Name: "x", Like: "nora", Type: "ledger"}); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("of another type: %v", err)
	}
	if plan, err := r.forge.Plan(t.Context(), Request{Name: "x", Like: "nora"}); err != nil || plan.Worker.TypeVersion != "1.0.0" {
		t.Errorf("plan: %+v, %v", plan, err)
	}
}
