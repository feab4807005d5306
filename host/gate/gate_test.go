package gate

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	liveSerial      = worker.Serial("DMN-TP-1-0000abcd-00001")
	retiredSerial   = worker.Serial("DMN-TP-1-0000abcd-00002")
	failedSerial    = worker.Serial("DMN-TP-1-0000abcd-00003")
	stoppedSerial   = worker.Serial("DMN-TP-1-0000abcd-00004")
	upgradingSerial = worker.Serial("DMN-TP-1-0000abcd-00005")
	echoSchema      = `{"type":"object","properties":{"message":{"type":"string"}},"required":["message"],"additionalProperties":false}`
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
		return worker.Worker{Serial: s, Type: "template", TypeVersion: "1.0.0", PluginDigest: "d1", State: worker.StateLive, Grants: []string{"ingress:hooks"}}, nil
	case retiredSerial:
		return worker.Worker{Serial: s, State: worker.StateRetired}, nil
	case failedSerial:
		return worker.Worker{Serial: s, State: worker.StateFailed}, nil
	case stoppedSerial:
		return worker.Worker{Serial: s, Name: "nora", State: worker.StateStopped}, nil
	case upgradingSerial:
		return worker.Worker{Serial: s, State: worker.StateUpgrading}, nil
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

func (w *world) NewestBefore(_ context.Context, at time.Time) (newest time.Time, err error) {
	for _, e := range w.past {
		if e.At.Before(at) && e.At.After(newest) {
			newest = e.At
		}
	}
	return newest, w.pastErr
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
		hint     string
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
			name: "stopped recipient", client: "nora", payload: good, code: Unavailable, hint: "dals-host start nora",
			edit: func(h *workerv1.Header) { h.Recipient = string(stoppedSerial) },
		},
		{
			name: "upgrading recipient", client: "nora", payload: good, code: Unavailable,
			edit: func(h *workerv1.Header) { h.Recipient = string(upgradingSerial) },
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
			if !strings.Contains(worker.HintOf(err), test.hint) {
				t.Errorf("hint %q, want %q", worker.HintOf(err), test.hint)
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
