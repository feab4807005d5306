package launchtest

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// discards deletes what was prepared: never under a worker, and so that preparing
// makes all of it again.
func discards(t *testing.T, open Open) {
	b := NewBench(t, open)
	all := b.artifacts()
	for _, a := range all {
		if a.InUse || a.Name == "" || a.Bytes < 0 {
			t.Errorf("nobody uses it: %+v", a)
		}
	}
	spec := b.Spec()
	b.must(b.Launcher.Create(b.Context(), spec))
	for _, state := range []string{"created", "running", "stopped"} {
		switch state {
		case "running":
			b.must(b.Launcher.Start(b.Context(), spec.Serial))
		case "stopped":
			b.Stop(spec.Serial, 0)
		}
		if err := b.Launcher.Discard(b.Context(), b.Image.Digest); len(all) > 0 && !errors.Is(err, worker.ErrConflict) {
			t.Errorf("discarded under a worker that is %s: %v", state, err)
		}
		for _, a := range b.artifacts() {
			if !a.InUse {
				t.Errorf("a worker is %s: %+v", state, a)
			}
		}
	}
	b.Remove(spec.Serial)
	for range 2 {
		b.must(b.Launcher.Discard(b.Context(), b.Image.Digest))
		if left := b.artifacts(); len(left) > 0 {
			t.Fatalf("left: %+v", left)
		}
	}
	if err := b.Launcher.Create(b.Context(), b.Spec()); len(all) > 0 && !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("a worker was created from what was discarded: %v", err)
	}
	_, err := b.Launcher.Prepare(b.Context(), b.Image)
	b.must(err)
	if again := b.artifacts(); len(again) != len(all) {
		t.Errorf("prepared again: %+v, was %+v", again, all)
	}
	b.Start(b.Spec())
	discardsInARace(t, b)
}

// discardsInARace has workers created while what they need is discarded: each
// creation finds it whole, or says that it is not there.
func discardsInARace(t *testing.T, b *Bench) {
	list, err := b.Launcher.List(b.Context())
	b.must(err)
	for _, s := range list {
		b.Remove(s.Serial)
	}
	for range 8 {
		_, err := b.Launcher.Prepare(b.Context(), b.Image)
		b.must(err)
		var discarding sync.WaitGroup
		discarding.Go(func() {
			time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond) // the moment is the point
			if err := b.Launcher.Discard(b.Context(), b.Image.Digest); err != nil && !errors.Is(err, worker.ErrConflict) {
				t.Errorf("discard: %v", err)
			}
		})
		spec := b.Spec()
		err = b.Launcher.Create(b.Context(), spec)
		if err == nil {
			b.must(b.Launcher.Start(b.Context(), spec.Serial))
			(&Guest{t: b.t, Spec: spec}).AwaitUp()
		} else if !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("create: %v", err)
		}
		discarding.Wait()
		b.Remove(spec.Serial)
	}
	_, err = b.Launcher.Prepare(b.Context(), b.Image)
	b.must(err)
}

func (b *Bench) artifacts() []launch.Artifact {
	b.t.Helper()
	list, err := b.Launcher.Artifacts(b.Context())
	b.must(err)
	return list
}
