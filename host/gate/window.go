package gate

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// window remembers the ids of envelopes until their freshness has run out: what
// it has forgotten, the freshness check refuses. Should the wall clock be set
// back after that, the floor refuses it: whatever would have been forgotten with
// it counts as seen. Ids are compared across all senders, as they are random
// UUIDs, so that no two outstanding envelopes of a worker can share one.
type window struct {
	now func() time.Time

	mu        sync.Mutex
	until     map[string]time.Time // id → when the freshness check takes over
	swept     time.Time
	floor     time.Time // the latest until that was forgotten; it never falls
	notBefore time.Time // envelopes issued earlier are refused
}

// sweepEvery spaces the scans for ids that have run out.
const sweepEvery = 10 * time.Second

func newWindow(now func() time.Time) *window {
	return &window{now: now, until: map[string]time.Time{}, swept: now()}
}

// fill takes in the envelopes of the record that could still be fresh: those
// issued in the last MaxTTL, seen through the skew on both sides.
func (w *window) fill(ctx context.Context, past Past) error {
	const reach = envelope.MaxTTL + 2*envelope.MaxSkew
	now := w.now()
	since := now.Add(-reach)
	// What was let through before that has expired, by this clock. If this clock
	// is set back it has not: then it must not come again.
	forgotten, err := past.NewestBefore(ctx, since)
	if err != nil {
		return err
	}
	if !forgotten.IsZero() {
		w.floor = earlier(now, forgotten.Add(reach))
	}
	return past.EntriesSince(ctx, since, func(e record.Entry) error {
		if e.Envelope == nil || (e.Kind != record.Admitted && e.Kind != record.Refused) {
			return nil
		}
		h := &workerv1.Header{}
		if err := proto.Unmarshal(e.Envelope.Header, h); err != nil {
			return fmt.Errorf("read recorded header of envelope %s: %w", e.Envelope.ID, err)
		}
		// An id that stands twice (a replay that was itself recorded) is no error.
		_ = w.insert(h)
		return nil
	})
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (w *window) refuseBefore(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.After(w.notBefore) {
		w.notBefore = t
	}
}

// check looks an envelope up without taking its id: a proof that does not hold
// must not burn the id of the envelope that it imitates.
func (w *window) check(h *workerv1.Header) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.look(h)
}

// insert takes the id, or refuses if another call took it first.
func (w *window) insert(h *workerv1.Header) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.look(h); err != nil {
		return err
	}
	w.sweep()
	w.until[h.GetId()] = until(h)
	return nil
}

// until is when an envelope is fresh no more, by any clock that may be right.
func until(h *workerv1.Header) time.Time {
	return time.UnixMilli(h.GetExpiresUnixMs()).Add(envelope.MaxSkew)
}

func (w *window) look(h *workerv1.Header) error {
	if _, seen := w.until[h.GetId()]; seen {
		return worker.Refuse(Replayed, "envelope %s was seen before", h.GetId())
	}
	if time.UnixMilli(h.GetIssuedUnixMs()).Before(w.notBefore) {
		return worker.Refuse(Replayed, "envelope %s may have been seen before: the record of the time when it was issued cannot be read", h.GetId())
	}
	if !until(h).After(w.floor) {
		return worker.Refuse(Expired, "it had expired before the host's clock was set back")
	}
	return nil
}

func (w *window) sweep() {
	now := w.now()
	if now.Sub(w.swept) < sweepEvery {
		return
	}
	w.swept = now
	for id, until := range w.until {
		if now.After(until) {
			delete(w.until, id)
			if until.After(w.floor) {
				w.floor = until
			}
		}
	}
}
