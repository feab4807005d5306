package host

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

func TestMirrorsAreWrittenTogether(t *testing.T) {
	t.Parallel()
	m := newMirrors()
	for range 3 {
		m.changed("a")
		m.changed("b")
	}
	if due := m.take(); len(due) != 2 || !due["a"] || !due["b"] {
		t.Errorf("due: %v", due)
	}
	if due := m.take(); len(due) != 0 {
		t.Errorf("due again: %v", due)
	}
	<-m.wake
	select {
	case <-m.wake:
		t.Error("woken twice for one list")
	default:
	}
}

func TestMirrorsWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, written := newMirrors(), make(chan worker.Serial, 9)
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.keep(ctx, func(_ context.Context, s worker.Serial) { written <- s }) }()
		m.changed("a")
		time.Sleep(mirrorAfter / 2)
		m.changed("a")
		time.Sleep(mirrorAfter)
		synctest.Wait()
		if n := len(written); n != 1 {
			t.Errorf("written %d times, want once", n)
		}
		// What is due at the end is written before it.
		m.changed("b")
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(written); n != 2 {
			t.Errorf("%d written at the end, want 2", n)
		}
	})
}
