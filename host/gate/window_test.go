package gate

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestReplay(t *testing.T) {
	w := newWorld()
	key := w.enrol(t, "nora")
	g := w.gate(t)
	env := sign(t, key, `{"message":"once"}`, nil)
	forged := proto.CloneOf(env)
	forged.GetProof().GetSignature()[0] ^= 1
	if _, err := g.Admit(t.Context(), "p", forged); codeOf(err) != BadProof {
		t.Fatalf("forged: %v", err)
	}
	// A forgery must not have burnt the id of the real one.
	if _, err := g.Admit(t.Context(), "p", env); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Admit(t.Context(), "p", env); codeOf(err) != Replayed {
		t.Fatalf("replay: %v", err)
	}
	// When the window forgets it, freshness takes over: at no time does it pass.
	for range 60 {
		w.now = w.now.Add(sweepEvery + time.Second)
		if _, err := g.Admit(t.Context(), "p", env); codeOf(err) != Replayed && codeOf(err) != Expired {
			t.Fatalf("replay after %s: %v", time.Until(w.now), err)
		}
	}
	if _, err := g.Admit(t.Context(), "p", sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
		h.IssuedUnixMs, h.ExpiresUnixMs = w.now.UnixMilli(), w.now.Add(time.Second).UnixMilli()
	})); err != nil {
		t.Fatal(err)
	}
	if n := len(g.seen.until); n != 1 {
		t.Fatalf("%d ids kept, want the last one only", n)
	}
}

func TestConcurrentReplay(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	env := sign(t, w.enrol(t, "nora"), `{"message":"once"}`, nil)
	var passed, replayed sync.Map
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			_, err := g.Admit(context.Background(), "p", env)
			switch codeOf(err) {
			case "":
				passed.Store(i, true)
			case Replayed:
				replayed.Store(i, true)
			}
		})
	}
	wg.Wait()
	count := func(m *sync.Map) (n int) { m.Range(func(any, any) bool { n++; return true }); return }
	if count(&passed) != 1 || count(&replayed) != 31 {
		t.Fatalf("%d passed, %d replayed", count(&passed), count(&replayed))
	}
}

func TestReplayAcrossRestart(t *testing.T) {
	w := newWorld()
	key := w.enrol(t, "nora")
	env := sign(t, key, `{"message":"once"}`, nil)
	h, err := envelope.Parse(env)
	if err != nil {
		t.Fatal(err)
	}
	w.past = []record.Entry{
		{At: w.now, Kind: record.HostStarted},
		{At: w.now, Kind: record.Admitted, Envelope: record.FieldsOfEnvelope(env, h, liveSerial)},
	}
	if _, err := w.gate(t).Admit(t.Context(), "p", env); codeOf(err) != Replayed {
		t.Fatalf("after restart: %v", err)
	}
}

// TestUnreadablePast starts a gate that cannot know what was let through before:
// whatever could have been, also of senders whose clocks are ahead, is refused.
func TestUnreadablePast(t *testing.T) {
	w := newWorld()
	key := w.enrol(t, "nora")
	start := w.now
	issued := func(at time.Duration) *workerv1.Envelope {
		return sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
			h.IssuedUnixMs, h.ExpiresUnixMs = start.Add(at).UnixMilli(), start.Add(at+time.Minute).UnixMilli()
		})
	}
	earlier := w.gate(t)
	used := []*workerv1.Envelope{issued(-20 * time.Second), issued(0), issued(20 * time.Second), issued(envelope.MaxSkew - time.Second)}
	for _, env := range used {
		if _, err := earlier.Admit(t.Context(), "p", env); err != nil {
			t.Fatal(err)
		}
	}
	w.pastErr = errors.New("rows cannot be read")
	w.now = start.Add(time.Second)
	g := w.gate(t)
	for _, env := range used {
		if _, err := g.Admit(t.Context(), "p", env); codeOf(err) != Replayed {
			t.Errorf("replayed: %v", err)
		}
	}
	w.now = w.now.Add(envelope.MaxSkew)
	if _, err := g.Admit(t.Context(), "p", issued(w.now.Sub(start)+time.Millisecond)); err != nil {
		t.Errorf("issued after the start: %v", err)
	}
}

// TestClockSetBack replays what the window has forgotten, by a clock by which it
// is fresh again.
func TestClockSetBack(t *testing.T) {
	w := newWorld()
	key := w.enrol(t, "nora")
	g := w.gate(t)
	start := w.now
	valid := func(issued, expires time.Duration) *workerv1.Envelope {
		return sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
			h.IssuedUnixMs, h.ExpiresUnixMs = start.Add(issued).UnixMilli(), start.Add(expires).UnixMilli()
		})
	}
	used := []*workerv1.Envelope{valid(0, time.Second), valid(0, time.Minute), valid(20*time.Second, 2*time.Minute)}
	admit := func(what string, env *workerv1.Envelope, codes ...string) {
		t.Helper()
		if _, err := g.Admit(t.Context(), "p", env); !slices.Contains(codes, codeOf(err)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, env := range used {
		admit("at first", env, "")
	}
	for _, jump := range []time.Duration{time.Hour, 24 * time.Hour} {
		w.now = start.Add(jump)
		ahead := valid(jump, jump+time.Second)
		admit("by the clock that jumped", ahead, "")
		if n := len(g.seen.until); jump == time.Hour && n != 1 {
			t.Fatalf("%d ids are kept: nothing was forgotten", n)
		}
		w.now = start.Add(time.Second)
		for _, env := range used {
			admit("by the clock that came back", env, Replayed, Expired)
		}
		admit("from the time ahead", ahead, Replayed, NotYetValid)
		if jump == time.Hour {
			// It expires later than all that was forgotten.
			admit("a new one", valid(time.Second, 5*time.Minute), "")
		}
	}
}

// TestLateEnvelopes is no clock's jump: an envelope that was signed for long, and
// comes after shorter ones were forgotten, is admitted.
func TestLateEnvelopes(t *testing.T) {
	w := newWorld()
	key := w.enrol(t, "nora")
	g := w.gate(t)
	start := w.now
	long := sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
		h.IssuedUnixMs, h.ExpiresUnixMs = start.UnixMilli(), start.Add(envelope.MaxTTL).UnixMilli()
	})
	for range 20 {
		w.now = w.now.Add(sweepEvery + time.Second)
		if _, err := g.Admit(t.Context(), "p", sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
			h.IssuedUnixMs, h.ExpiresUnixMs = w.now.UnixMilli(), w.now.Add(time.Second).UnixMilli()
		})); err != nil {
			t.Fatal(err)
		}
	}
	if g.seen.floor.IsZero() {
		t.Fatal("nothing was forgotten")
	}
	if _, err := g.Admit(t.Context(), "p", long); err != nil {
		t.Error(err)
	}
}
