package forge

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// TestLease: what a job has looked up is leased until it has ended, however it
// ends, and not longer.
func TestLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	digest := fmt.Sprintf("%064x", 7)
	leased := func() bool {
		all, resume, err := r.forge.Leased(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer resume()
		return all[digest] > 0
	}
	if leased() {
		t.Error("leased by nobody")
	}
	during := false
	r.onBeat = func() { during = leased() }
	made, err := r.forge.Forge(t.Context(), nora)
	if err != nil || !during || leased() {
		t.Errorf("forged: %v; leased meanwhile %t, afterwards %t", err, during, leased())
	}
	if _, err := r.forge.Forge(t.Context(), nora); err != nil || leased() {
		t.Errorf("found: %v, leased afterwards %t", err, leased())
	}
	if _, err := r.forge.Plan(t.Context(), Request{Name: "otto", Type: "template", ClassCode: "A1"}); err != nil || leased() {
		t.Errorf("planned: %v, leased afterwards %t", err, leased())
	}
	for name, bad := range map[string]Request{
		"config": {Name: "otto", Type: "template", ClassCode: "A1", Config: []byte(`{"x":1}`)},
		"type":   {Name: "otto", Type: "xyz", ClassCode: "A1"},
	} {
		if _, err := r.forge.Forge(t.Context(), bad); err == nil || leased() {
			t.Errorf("bad %s: %v, leased afterwards %t", name, err, leased())
		}
	}
	during, r.noBeat = false, worker.ErrDeadline
	if _, err := r.forge.Forge(t.Context(), Request{Name: "otto", Type: "template", ClassCode: "A1"}); !errors.Is(err, worker.ErrDeadline) || !during || leased() {
		t.Errorf("undone: %v; leased meanwhile %t, afterwards %t", err, during, leased())
	}
	if _, err := r.forge.Retire(t.Context(), made.Worker.Serial, 0); err != nil {
		t.Fatal(err)
	}
}

// TestLookupDuringACollection: a job waits for a collection only as long as its
// caller does. One that ends meanwhile does not wait, and what it needed is spared.
func TestLookupDuringACollection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, release, err := r.forge.lookup(t.Context(), "template", "")
	if err != nil {
		t.Fatal(err)
	}
	leased, resume, err := r.forge.Leased(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release()
	if leased[fmt.Sprintf("%064x", 7)] != 1 {
		t.Errorf("leased %v", leased)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := r.forge.Forge(ctx, nora); !errors.Is(err, context.DeadlineExceeded) || worker.HintOf(err) == "" {
		t.Errorf("forge: %v", err)
	}
	if _, _, err := r.forge.Leased(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another collection: %v", err)
	}
	resume()
	if _, err := r.forge.Forge(t.Context(), nora); err != nil {
		t.Error(err)
	}
}
