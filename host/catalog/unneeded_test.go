package catalog

import (
	"context"
	"errors"
	"os"
	"slices"
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
	count, executions := counter(t)
	r := startRig(t)
	kept := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	said := script{Type: describing("cat", "1.1.0", "CT"), Count: count}
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
		eventually(t, 10*time.Second, func() error {
			r.unneeded(true)
			if s := r.plugin(path).State; s != Gone {
				return errors.New(string(s))
			}
			return nil
		})
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
