package forge

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
)

// TestRestartThatCannotBeRecorded: the worker is handed back, whatever fails.
func TestRestartThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.onBeat = func() { _ = r.registry.Close() } // after the state was turned
	_, err := r.forge.Restart(t.Context(), w.Serial, 0, 0)
	if err == nil || worker.HintOf(err) == "" || !r.kept[w.Serial] || !r.attached[w.Serial] {
		t.Errorf("%v (hint %q): kept %v, attached %v", err, worker.HintOf(err), r.kept[w.Serial], r.attached[w.Serial])
	}
	r.onBeat = nil
	r.open(false)
	if row := r.row(w.Serial); row.State != worker.StateRestarting {
		t.Errorf("the row is %s", row.State)
	}
}

// orphaned is a worker whose host died in the middle of an upgrade, whose registry
// was then made again from the record, and whose old folder could not be put back
// by the next host's start.
func orphaned(t *testing.T) (*rig, worker.Worker) {
	t.Helper()
	r, was := upgradable(t, worker.StateLive)
	r.upgradeSteps(was, "start")
	r.set(was.Serial, worker.StateLive, "")
	r.die()
	r.launcher.stuck = errors.New("containerd is away")
	if err := r.forge.Recover(t.Context()); err == nil {
		t.Fatal("settled without a launcher")
	}
	r.launcher.stuck = nil
	r.attached[was.Serial], r.kept[was.Serial] = true, true // as the host adopts a live row
	return r, was
}

// TestUpgradeKeepsTheOnlyFolder: the old folder is not taken for a leftover.
func TestUpgradeKeepsTheOnlyFolder(t *testing.T) {
	t.Parallel()
	r, was := orphaned(t)
	r.others = map[string]string{"2.0.0": digest2}
	if _, _, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"}); err == nil || worker.HintOf(err) == "" {
		t.Errorf("upgraded: %v (hint %q)", err, worker.HintOf(err))
	}
	if _, err := os.Stat(filepath.Join(r.stage.Dir(was.Serial), "state", "memory")); err != nil {
		t.Error(err)
	}
	if err := isFolderOf(r.stage.OpenRoot, r.row(was.Serial)); err != nil {
		t.Error(err)
	}
}

// TestPutBackUnderTheKeeper: a folder that is put back later, when the worker is
// kept, leaves it on its way up.
func TestPutBackUnderTheKeeper(t *testing.T) {
	t.Parallel()
	r, was := orphaned(t)
	if err := r.forge.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if row := r.row(was.Serial); row.State != worker.StateRestarting || !r.kept[was.Serial] || !r.attached[was.Serial] {
		t.Errorf("%s, kept %v, attached %v", row.State, r.kept[was.Serial], r.attached[was.Serial])
	}
	if asides, err := r.stage.Asides(); err != nil || len(asides) > 0 {
		t.Errorf("left aside: %v, %v", asides, err)
	}
}

// TestSettlingDoesNotWait: what somebody is busy with holds up nobody else's
// settling, and its turn comes later.
func TestSettlingDoesNotWait(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.forged()
	r.noBeat, r.launcher.stuck = errInjected, errors.New("stuck")
	otto := Request{Name: "otto", Type: "template", ClassCode: "A1"}
	if _, err := r.forge.Forge(t.Context(), otto); !errors.Is(err, r.launcher.stuck) {
		t.Fatal(err)
	}
	r.launcher.stuck = nil
	r.set(w.Serial, worker.StateStopped, "") // and it runs: somebody is stopping it
	nora, err := r.forge.take(t.Context(), w.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.forge.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.count(record.Void) != 1 || !r.launcher.running[w.Serial] {
		t.Errorf("%d voids, nora runs %t", r.count(record.Void), r.launcher.running[w.Serial])
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	r.forge.leave()
	go func() { ended <- r.forge.Run(ctx) }()
	nora()
	for deadline := time.Now().Add(time.Minute); r.runs(w.Serial); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not ended later")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func (r *rig) runs(s worker.Serial) bool {
	r.launcher.mu.Lock()
	defer r.launcher.mu.Unlock()
	return r.launcher.running[s]
}
