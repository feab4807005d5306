package forge

import (
	"errors"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// TestLimits: what a forge asks for is part of what it asks for, is kept, and
// reaches the launcher.
func TestLimits(t *testing.T) {
	r := newRig(t)
	asked := nora
	asked.Limits = worker.Limits{MemoryBytes: 64 << 20, PIDs: 64}
	plan, err := r.forge.Plan(t.Context(), asked)
	if err != nil || !strings.Contains(plan.Steps[7].Makes, "memory_bytes=67108864") {
		t.Fatalf("plan %+v, %v", plan.Steps, err)
	}
	if _, err := r.forge.Forge(t.Context(), held(nora, plan.Hash)); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "limits is now") {
		t.Errorf("other limits than planned: %v", err)
	}
	made, err := r.forge.Forge(t.Context(), held(asked, plan.Hash))
	if err != nil {
		t.Fatal(err)
	}
	if w := r.row(made.Worker.Serial); w.Limits != asked.Limits {
		t.Errorf("row has %+v", w.Limits)
	}
	if e := r.entries()[0]; e.Worker.Limits.Asked() != asked.Limits {
		t.Errorf("recorded %+v", e.Worker.Limits)
	}
	if again, err := r.forge.Forge(t.Context(), asked); err != nil || !again.Existed {
		t.Errorf("again: %+v, %v", again, err)
	}
	other := asked
	other.Limits.MemoryBytes = 128 << 20
	want := "memory_bytes is 67108864, asked for 134217728"
	if _, err := r.forge.Forge(t.Context(), other); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), want) {
		t.Errorf("other limits: %v", err)
	}
	if _, err := r.forge.Forge(t.Context(), nora); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "pids is 64") {
		t.Errorf("no limits: %v", err)
	}
	like, err := r.forge.Forge(t.Context(), Request{Name: "tom", Like: "nora", Limits: worker.Limits{PIDs: 99}})
	if want := (worker.Limits{MemoryBytes: 64 << 20, PIDs: 99}); err != nil || like.Worker.Limits != want {
		t.Errorf("like: %+v, %v", like.Worker.Limits, err)
	}
	r.others = map[string]string{"2.0.0": digest2}
	upgraded, _, err := r.forge.Upgrade(t.Context(), made.Worker.Serial, UpgradeRequest{Version: "2.0.0"})
	if err != nil || upgraded.Limits != asked.Limits || r.row(upgraded.Serial).Limits != asked.Limits {
		t.Errorf("upgraded: %+v, %v", upgraded.Limits, err)
	}
	other.Name, other.Limits.PIDs = "otto", 1
	if _, err := r.forge.Forge(t.Context(), other); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("one process: %v", err)
	}
}
