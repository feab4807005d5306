package gate

import (
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestNotBefore: after a recovery nobody knows which envelopes were seen before.
func TestNotBefore(t *testing.T) {
	w := newWorld()
	key := w.enrol(t, "nora")
	limit := w.now.Add(10 * time.Second).Truncate(time.Millisecond)
	g := New(t.Context(), Config{
		Directory: w, Kinds: w, Recorder: w, NotBefore: limit, Logger: hclog.NewNullLogger(), Now: func() time.Time { return w.now },
	}, w)
	admit := func(issued time.Time) string {
		_, err := g.Admit(t.Context(), "p", sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
			h.IssuedUnixMs, h.ExpiresUnixMs = issued.UnixMilli(), issued.Add(time.Minute).UnixMilli()
		}))
		return codeOf(err)
	}
	for _, at := range []time.Time{w.now.Add(-time.Minute / 2), w.now, limit.Add(-time.Millisecond)} {
		if code := admit(at); code != Replayed {
			t.Errorf("issued %s before the limit: %q", limit.Sub(at), code)
		}
	}
	if code := admit(limit); code != "" {
		t.Errorf("issued at the limit: %q", code)
	}
}
