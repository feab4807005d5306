package catalog

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

func (r *rig) unneeded(pick bool) (digests []string) {
	r.t.Helper()
	err := r.catalog.Collect(r.t.Context(), func(all []Stored) (picked []string) {
		for _, s := range all {
			if s.Bytes == 0 {
				r.t.Errorf("without bytes: %+v", s)
			}
			digests = append(digests, s.Digest)
		}
		if pick {
			return append(digests, "../../plugins")
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(digests)
	return digests
}

// TestCollect: what a plugin stands on is never offered; what was deleted comes
// back with its file, without a probe.
func TestCollect(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	kept := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	said := script{Type: describing("cat", "1.1.0", "CT")}
	executions := r.executions(plug(t, said))
	path := r.drop("dals-worker-cat", plug(t, said))
	bad := r.drop("dals-worker-bad", plug(t, script{Do: "exit"}))
	r.await(kept, Registered)
	digest := r.await(path, Registered).Digest
	quarantined := r.await(bad, Quarantined).Digest
	if got := r.unneeded(false); !slices.Equal(got, []string{quarantined}) {
		t.Fatalf("unneeded %v, want the quarantined %s", got, quarantined)
	}
	r.use("cat", "1.1.0", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.await(path, Draining)
	if got := r.unneeded(true); !slices.Equal(got, []string{quarantined}) {
		t.Fatalf("unneeded while cat drains: %v", got)
	}
	r.use("cat", "1.1.0", false)
	r.await(path, Gone)
	if got := r.unneeded(true); !slices.Equal(got, []string{digest}) {
		t.Fatalf("unneeded when cat is gone: %v, want %s", got, digest)
	}
	if r.catalog.store.has(digest) || len(r.unneeded(true)) > 0 {
		t.Error("it was not deleted")
	}
	before := executions()
	r.drop("dals-worker-cat", plug(t, said))
	if again := r.await(path, Registered); again.Digest != digest || !r.catalog.store.has(digest) {
		t.Errorf("it came back as %+v", again)
	}
	if executions() != before {
		t.Error("it was probed again")
	}
}

// TestCollectInARace: files come and go while their binaries are collected. None
// that is registered in the end lacks its binary.
func TestCollectInARace(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	binary := good(t, "goat", "1.0.0", "GT")
	deadline := time.Now().Add(4 * time.Second)
	for time.Now().Before(deadline) {
		path := r.drop("dals-worker-goat", binary)
		for r.plugin(path).State != Registered {
			r.unneeded(true)
		}
		if p := r.plugin(path); !r.catalog.store.has(p.Digest) {
			t.Fatalf("registered without its binary: %+v", p)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			r.unneeded(true)
			if s := r.plugin(path).State; s != Gone {
				return errors.New(string(s))
			}
			return nil
		})
	}
}

// TestCollectIsWithdrawn: a call whose context ends never runs its choose after it
// has returned: the race detector watches chosen.
func TestCollectIsWithdrawn(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	gave := 0
	for deadline := time.Now().Add(limit); gave < 20; {
		if time.Now().After(deadline) {
			t.Fatalf("only %d calls gave up", gave)
		}
		ctx, cancel := context.WithCancel(t.Context())
		chosen := false
		err := r.catalog.Collect(ctx, func([]Stored) []string {
			cancel()
			time.Sleep(time.Millisecond) // for the caller to be gone
			chosen = true
			return nil
		})
		if err != nil || !chosen {
			t.Fatalf("begun: %v, chosen %t", err, chosen)
		}
		// And one that gives up before, or just as, it begins.
		ctx, cancel = context.WithTimeout(t.Context(), time.Duration(rand.IntN(100))*time.Microsecond)
		chosen = false
		err = r.catalog.Collect(ctx, func([]Stored) []string { chosen = true; return nil })
		if (err == nil) != chosen {
			t.Fatalf("given up: %v, chosen %t", err, chosen)
		}
		if err != nil {
			gave++
		}
		cancel()
	}
}

// TestCollectGivesUpBehindAJob: a call that waits for a probe to end goes with its
// context, and is not answered after it.
func TestCollectGivesUpBehindAJob(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	k := &keeper{catalog: r.catalog, store: r.catalog.store, working: 1}
	request := collection{func([]Stored) []string { t.Error("chosen"); return nil }, new(atomic.Bool), make(chan error, 1)}
	k.collecting = []collection{request}
	k.collect()
	request.taken.Store(true) // as Collect withdraws it
	k.working = 0
	k.collect()
	if len(k.collecting) != 0 || len(request.done) != 0 {
		t.Errorf("left %v, answered %d", k.collecting, len(request.done))
	}
}

func TestCollectEndsWithItsContext(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.catalog.Collect(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("collected without a catalog: %v", err)
	}
}
