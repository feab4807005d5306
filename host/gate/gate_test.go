package gate

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	liveSerial    = worker.Serial("DMN-TP-1-0000abcd-00001")
	retiredSerial = worker.Serial("DMN-TP-1-0000abcd-00002")
	failedSerial  = worker.Serial("DMN-TP-1-0000abcd-00003")
	echoSchema    = `{"type":"object","properties":{"message":{"type":"string"}},"required":["message"],"additionalProperties":false}`
)

// world is the host that a gate stands in: real envelopes and keys, tables for
// what the registry would say.
type world struct {
	mu      sync.Mutex
	entries []record.Entry
	past    []record.Entry
	pastErr error
	clients map[string]string // id → name; "revoked" may not send
	schema  string            // of template.echo
	now     time.Time
}

func newWorld() *world {
	return &world{clients: map[string]string{}, schema: echoSchema, now: time.Now()}
}

func (w *world) Worker(_ context.Context, s worker.Serial) (worker.Worker, error) {
	switch s {
	case liveSerial:
		return worker.Worker{Serial: s, Type: "template", TypeVersion: "1.0.0", PluginDigest: "d1", State: worker.StateLive}, nil
	case retiredSerial:
		return worker.Worker{Serial: s, State: worker.StateRetired}, nil
	case failedSerial:
		return worker.Worker{Serial: s, State: worker.StateFailed}, nil
	}
	return worker.Worker{}, fmt.Errorf("worker %s: %w", s, worker.ErrNotFound)
}

func (w *world) Client(_ context.Context, id string) (string, ed25519.PublicKey, bool, error) {
	name, known := w.clients[id]
	if !known {
		return "", nil, false, worker.ErrNotFound
	}
	public, err := envelope.ParseClientID(id)
	return name, public, name == "revoked", err
}

func (w *world) InputSchema(_ context.Context, digest, kind string) ([]byte, error) {
	if digest != "d1" || kind != "template.echo" {
		return nil, worker.ErrNotFound
	}
	return []byte(w.schema), nil
}

func (w *world) Record(ctx context.Context, e record.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	line, err := e.Encode()
	if err == nil {
		e, err = record.Decode(line)
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	w.entries = append(w.entries, e)
	return nil
}

func (w *world) EntriesSince(_ context.Context, since time.Time, visit func(record.Entry) error) error {
	for _, e := range w.past {
		if e.At.Before(since) {
			continue
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return w.pastErr
}

func (w *world) gate(t *testing.T) *Gate {
	t.Helper()
	return New(t.Context(), Config{
		Directory: w, Kinds: w, Recorder: w, Logger: hclog.NewNullLogger(), Now: func() time.Time { return w.now },
	}, w)
}

func (w *world) enrol(t *testing.T, name string) ed25519.PrivateKey {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.clients[envelope.ClientID(public)] = name
	return key
}

// sign makes an envelope for template.echo, after edit has had its way with it.
func sign(t *testing.T, key ed25519.PrivateKey, payload string, edit func(*workerv1.Header)) *workerv1.Envelope {
	t.Helper()
	h := &workerv1.Header{Recipient: string(liveSerial), Kind: "template.echo"}
	if edit != nil {
		edit(h)
	}
	env, err := envelope.New(key, envelope.ClientID(key.Public().(ed25519.PublicKey)), h, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func codeOf(err error) string {
	if refusal, ok := errors.AsType[*worker.Refusal](err); ok {
		return refusal.Code
	}
	if err != nil {
		return "not a refusal: " + err.Error()
	}
	return ""
}

func TestAdmit(t *testing.T) {
	const good = `{"message":"hi"}`
	times := func(issued, expires time.Duration) func(*workerv1.Header) {
		return func(h *workerv1.Header) {
			now := time.Now()
			h.IssuedUnixMs, h.ExpiresUnixMs = now.Add(issued).UnixMilli(), now.Add(expires).UnixMilli()
		}
	}
	tests := []struct {
		name     string
		client   string // whose key signs; "" is a stranger
		payload  string
		edit     func(*workerv1.Header)
		spoil    func(*workerv1.Envelope)
		code     string
		recorded bool // an entry of its own, in the sender's name
	}{
		{name: "admitted", client: "nora", payload: good},
		{
			name: "too large", client: "nora", payload: good, code: PayloadTooLarge,
			spoil: func(e *workerv1.Envelope) { e.Payload = make([]byte, envelope.MaxPayload+1) },
		},
		{name: "no header", client: "nora", payload: good, code: Malformed, spoil: func(e *workerv1.Envelope) { e.Header = []byte{0xff} }},
		{
			name: "unknown recipient", client: "nora", payload: good, code: RecipientUnknown,
			edit: func(h *workerv1.Header) { h.Recipient = "DMN-TP-1-0000abcd-fffff" },
		},
		{
			name: "retired recipient", client: "nora", payload: good, code: RecipientRetired,
			edit: func(h *workerv1.Header) { h.Recipient = string(retiredSerial) },
		},
		{
			name: "failed recipient", client: "nora", payload: good, code: Unavailable,
			edit: func(h *workerv1.Header) { h.Recipient = string(failedSerial) },
		},
		{
			name: "pool", client: "nora", payload: good, code: RecipientUnknown,
			edit: func(h *workerv1.Header) { h.Recipient = "pool:template" },
		},
		{name: "stranger", payload: good, code: SenderUnknown},
		{name: "revoked", client: "revoked", payload: good, code: SenderRevoked},
		{name: "expired", client: "nora", payload: good, code: Expired, edit: times(-2*time.Minute, -time.Minute)},
		{name: "not yet valid", client: "nora", payload: good, code: NotYetValid, edit: times(time.Minute, 2*time.Minute)},
		{name: "valid for too long", client: "nora", payload: good, code: TTLTooLong, edit: times(0, 10*time.Minute)},
		{
			name: "tampered payload", client: "nora", payload: good, code: BadProof,
			spoil: func(e *workerv1.Envelope) { e.Payload = []byte(`{"message":"ho"}`) },
		},
		{
			name: "tampered signature", client: "nora", payload: good, code: BadProof,
			spoil: func(e *workerv1.Envelope) { e.GetProof().GetSignature()[3] ^= 1 },
		},
		{
			name: "unknown kind", client: "nora", payload: good, code: KindUnknown, recorded: true,
			edit: func(h *workerv1.Header) { h.Kind = "template.nothing" },
		},
		{name: "not JSON", client: "nora", payload: "hi", code: PayloadNotJSON, recorded: true},
		{name: "no payload", client: "nora", payload: "", code: PayloadNotJSON, recorded: true},
		{name: "misses the schema", client: "nora", payload: `{"message":7}`, code: SchemaMismatch, recorded: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			if test.client != "" {
				key = w.enrol(t, test.client)
			}
			g := w.gate(t)
			env := sign(t, key, test.payload, test.edit)
			if test.spoil != nil {
				test.spoil(env)
			}
			a, err := g.Admit(t.Context(), "uid=0", env)
			if code := codeOf(err); code != test.code {
				t.Fatalf("code %q, want %q (%v)", code, test.code, err)
			}
			if test.code == "" && a.Worker.Serial != liveSerial {
				t.Fatalf("admitted %+v", a)
			}
			if recorded := len(w.entries) == 1; recorded != test.recorded {
				t.Fatalf("%d entries recorded: %+v", len(w.entries), w.entries)
			}
		})
	}
}

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

// TestHangingUpLeavesATrace refuses an envelope whose sender does not wait.
func TestHangingUpLeavesATrace(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	env := sign(t, w.enrol(t, "nora"), `{"message":7}`, nil)
	ctx, hangUp := context.WithCancel(t.Context())
	hangUp()
	if _, err := g.Admit(ctx, "p", env); codeOf(err) != SchemaMismatch {
		t.Fatal(err)
	}
	if len(w.entries) != 1 {
		t.Fatalf("%d entries", len(w.entries))
	}
}

// TestRefusedIsAlwaysRecorded gives the record reasons of every kind.
func TestRefusedIsAlwaysRecorded(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	a, err := g.Admit(t.Context(), "p", sign(t, w.enrol(t, "nora"), `{"message":"hi"}`, nil))
	if err != nil {
		t.Fatal(err)
	}
	for i, reason := range []string{"", strings.Repeat("\x00", 70_000), strings.Repeat("é", 70_000), strings.Repeat("\xff", 70_000), "a\xc3"} {
		if err := g.Refused(t.Context(), strings.Repeat("\xff", 5000), a, worker.Refuse("worker_unavailable", "%s", reason)); !errors.Is(err, worker.ErrRefused) {
			t.Error(err)
		}
		if len(w.entries) != i+1 || utf8.RuneCountInString(w.entries[i].Refusal.Reason) > maxReason {
			t.Fatalf("%.20q: %d entries, the last is %+v", reason, len(w.entries), w.entries[len(w.entries)-1].Refusal)
		}
	}
}

func TestRates(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	stranger := sign(t, w.enrol(t, "revoked"), `{"message":"x"}`, nil)
	codes := map[string]int{}
	for range 3*peerRate + 1 {
		_, err := g.Admit(t.Context(), "uid=7", stranger)
		codes[codeOf(err)]++
	}
	if codes[SenderRevoked] != 2*peerRate || codes[RateLimited] != peerRate+1 {
		t.Fatalf("codes %v", codes)
	}
	if _, err := g.Admit(t.Context(), "uid=8", stranger); codeOf(err) != SenderRevoked {
		t.Fatalf("another peer: %v", err)
	}
	// All that noise is a few entries, and none names the claimed sender.
	g.refusals.summarize(t.Context())
	if len(w.entries) != 3 {
		t.Fatalf("%d entries", len(w.entries))
	}
	var total uint64
	for _, e := range w.entries {
		if text, _ := json.Marshal(e); e.Kind != record.RefusedSummary || strings.Contains(string(text), "key:") {
			t.Fatalf("entry %s", text)
		}
		total += e.Refusal.Count
	}
	if total != 3*peerRate+2 {
		t.Fatalf("%d refusals told of", total)
	}
}

// TestRun tells of early refusals once a minute, and of the last ones at the end.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		g := w.gate(t)
		ctx, end := context.WithCancel(t.Context())
		running := make(chan error)
		go func() { running <- g.Run(ctx) }()
		refuse := func(n int) {
			for range n {
				if _, err := g.Admit(t.Context(), "uid=7 pid=8", &workerv1.Envelope{Header: []byte{0xff}}); codeOf(err) != Malformed {
					t.Fatal(err)
				}
			}
		}
		told := func() (counts []uint64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range w.entries {
				if e.Kind != record.RefusedSummary || e.Refusal.Code != Malformed || e.Refusal.Peer != "uid=7 pid=8" {
					t.Errorf("entry %+v", e)
				}
				counts = append(counts, e.Refusal.Count)
			}
			return counts
		}
		refuse(3)
		time.Sleep(summaryEvery - time.Second)
		synctest.Wait()
		if counts := told(); counts != nil {
			t.Errorf("too soon: %v", counts)
		}
		time.Sleep(2 * time.Second)
		refuse(2)
		end()
		if err := <-running; err != nil {
			t.Error(err)
		}
		if counts := told(); !slices.Equal(counts, []uint64{3, 2}) {
			t.Errorf("told of %v", counts)
		}
	})
}

func TestPeersAreBounded(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	env := &workerv1.Envelope{Header: []byte{0xff}}
	for i := range 3 * maxPeers {
		if _, err := g.Admit(t.Context(), fmt.Sprint(i), env); codeOf(err) != Malformed {
			t.Fatal(err)
		}
	}
	if n := len(g.refusals.counts); n > maxPeers+1 {
		t.Fatalf("%d counts", n)
	}
	w.now = w.now.Add(time.Hour)
	if _, err := g.Admit(t.Context(), "last", env); codeOf(err) != Malformed {
		t.Fatal(err)
	}
	if n := len(g.peers.byName); n != 1 {
		t.Fatalf("%d limiters after an idle hour", n)
	}
}
