package gate

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

const (
	liveSerial    = worker.Serial("DMN-TP-1-0000abcd-00001")
	retiredSerial = worker.Serial("DMN-TP-1-0000abcd-00002")
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
	now     time.Time
}

func newWorld() *world {
	return &world{clients: map[string]string{}, now: time.Now()}
}

func (w *world) Worker(_ context.Context, s worker.Serial) (worker.Worker, error) {
	switch s {
	case liveSerial:
		return worker.Worker{Serial: s, Type: "template", TypeVersion: "1.0.0", PluginDigest: "d1", State: worker.StateLive}, nil
	case retiredSerial:
		return worker.Worker{Serial: s, State: worker.StateRetired}, nil
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
	return []byte(echoSchema), nil
}

func (w *world) Record(_ context.Context, e record.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := e.Encode(); err != nil {
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
	var refusal *worker.Refusal
	if errors.As(err, &refusal) {
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
		{name: "too large", client: "nora", payload: good, code: PayloadTooLarge,
			spoil: func(e *workerv1.Envelope) { e.Payload = make([]byte, envelope.MaxPayload+1) }},
		{name: "no header", client: "nora", payload: good, code: Malformed, spoil: func(e *workerv1.Envelope) { e.Header = []byte{0xff} }},
		{name: "unknown recipient", client: "nora", payload: good, code: RecipientUnknown,
			edit: func(h *workerv1.Header) { h.Recipient = "DMN-TP-1-0000abcd-fffff" }},
		{name: "retired recipient", client: "nora", payload: good, code: RecipientRetired,
			edit: func(h *workerv1.Header) { h.Recipient = string(retiredSerial) }},
		{name: "pool", client: "nora", payload: good, code: RecipientUnknown,
			edit: func(h *workerv1.Header) { h.Recipient = "pool:template" }},
		{name: "stranger", payload: good, code: SenderUnknown},
		{name: "revoked", client: "revoked", payload: good, code: SenderRevoked},
		{name: "expired", client: "nora", payload: good, code: Expired, edit: times(-2*time.Minute, -time.Minute)},
		{name: "not yet valid", client: "nora", payload: good, code: NotYetValid, edit: times(time.Minute, 2*time.Minute)},
		{name: "valid for too long", client: "nora", payload: good, code: TTLTooLong, edit: times(0, 10*time.Minute)},
		{name: "tampered payload", client: "nora", payload: good, code: BadProof,
			spoil: func(e *workerv1.Envelope) { e.Payload = []byte(`{"message":"ho"}`) }},
		{name: "tampered signature", client: "nora", payload: good, code: BadProof,
			spoil: func(e *workerv1.Envelope) { e.GetProof().GetSignature()[3] ^= 1 }},
		{name: "unknown kind", client: "nora", payload: good, code: KindUnknown, recorded: true,
			edit: func(h *workerv1.Header) { h.Kind = "template.nothing" }},
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
			if test.code == "" && (a.Worker.Serial != liveSerial || a.Client != test.client) {
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

	w.past, w.pastErr = nil, errors.New("rows cannot be read")
	g := w.gate(t)
	if _, err := g.Admit(t.Context(), "p", sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
		h.IssuedUnixMs, h.ExpiresUnixMs = w.now.Add(-time.Second).UnixMilli(), w.now.Add(time.Second).UnixMilli()
	})); codeOf(err) != Replayed {
		t.Fatalf("unreadable past, older envelope: %v", err)
	}
	w.now = w.now.Add(time.Second)
	if _, err := g.Admit(t.Context(), "p", sign(t, key, `{"message":"x"}`, func(h *workerv1.Header) {
		h.IssuedUnixMs, h.ExpiresUnixMs = w.now.UnixMilli(), w.now.Add(time.Second).UnixMilli()
	})); err != nil {
		t.Fatalf("unreadable past, newer envelope: %v", err)
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
