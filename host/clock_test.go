package host

import (
	"context"
	"crypto/ed25519"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/gate"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// shifted is a gate over a real registry, by a clock that can be set.
type shifted struct {
	t        *testing.T
	registry *registry.Registry
	key      ed25519.PrivateKey
	serial   worker.Serial
	offset   time.Duration // of the host's clock
	gate     *gate.Gate
}

func newShifted(t *testing.T) *shifted {
	t.Helper()
	r, err := registry.Open(t.Context(), registry.Config{Path: filepath.Join(t.TempDir(), "registry.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &shifted{t: t, registry: r, key: key, serial: worker.NewSerial("DMN-TP-1", 1, 1)}
	err = r.Update(t.Context(), func(tx *registry.Tx) error {
		return errors.Join(
			tx.AddClient(registry.Client{ID: envelope.ClientID(public), Name: "ci", PublicKey: public, CreatedAt: time.Now()}),
			tx.InsertWorker(worker.Worker{Serial: s.serial, Name: "nora", Type: "template", LedgerCode: "A1-000001", State: worker.StateLive, CreatedAt: time.Now()}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.restart(0)
	return s
}

func (s *shifted) now() time.Time { return time.Now().Add(s.offset) }

func (s *shifted) InputSchema(context.Context, string, string) ([]byte, error) {
	return []byte("{}"), nil
}

// restart starts a host whose clock is wrong by offset.
func (s *shifted) restart(offset time.Duration) {
	s.offset = offset
	s.gate = gate.New(s.t.Context(), gate.Config{
		Directory: directory{s.registry}, Kinds: s, Recorder: recorder{s.registry}, Logger: hclog.NewNullLogger(), Now: s.now,
	}, past{s.registry})
}

// signed is an envelope of a client whose clock is wrong by offset.
func (s *shifted) signed(offset time.Duration) *workerv1.Envelope {
	s.t.Helper()
	at := time.Now().Add(offset)
	h := &workerv1.Header{
		Recipient: string(s.serial), Kind: "template.echo",
		IssuedUnixMs: at.UnixMilli(), ExpiresUnixMs: at.Add(envelope.DefaultTTL).UnixMilli(),
	}
	env, err := envelope.New(s.key, envelope.ClientID(s.key.Public().(ed25519.PublicKey)), h, []byte("{}"))
	if err != nil {
		s.t.Fatal(err)
	}
	return env
}

// send admits an envelope and records that, as the broker does, at the time of the
// host's clock.
func (s *shifted) send(what string, env *workerv1.Envelope, want string) {
	s.t.Helper()
	a, err := s.gate.Admit(s.t.Context(), "test", env)
	code := ""
	if refusal, ok := errors.AsType[*worker.Refusal](err); ok {
		code = refusal.Code
	} else if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	if code != want {
		s.t.Errorf("%s: %q, want %q", what, code, want)
	}
	if err != nil {
		return
	}
	fields := record.FieldsOfEnvelope(a.Envelope, a.Header, s.serial)
	fields.Attempt = 1
	line, err := record.Entry{At: s.now(), Kind: record.Admitted, Envelope: fields}.Encode()
	if err == nil {
		err = s.registry.Update(s.t.Context(), func(tx *registry.Tx) error {
			_, err := tx.AppendPast(line, s.now())
			return err
		})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestClockAnHourOff sets the host's clock an hour back and forth, running and
// over restarts: requests are refused for their times, the host serves on, all is
// well when the clock is right again, and nothing is let through twice.
func TestClockAnHourOff(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		wrong time.Duration
		code  string // of what a client with a right clock sends meanwhile
	}{{"forth", time.Hour, "expired"}, {"back", -time.Hour, "not_yet_valid"}} {
		for _, restarts := range []int{0, 1, 2} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				s := newShifted(t)
				before := s.signed(0)
				s.send("before", before, "")
				s.send("replayed", before, "replayed")
				s.offset = test.wrong
				for range restarts {
					s.restart(test.wrong)
					s.send("by a wrong clock as the host's", s.signed(test.wrong), "")
				}
				s.send("by a right clock", s.signed(0), test.code)
				meanwhile := s.signed(test.wrong)
				s.send("meanwhile", meanwhile, "")
				s.send("meanwhile, replayed", meanwhile, "replayed")
				s.offset = 0
				if _, err := s.gate.Admit(t.Context(), "test", before); err == nil {
					t.Error("let through again when the clock was right again")
				}
				if _, err := s.gate.Admit(t.Context(), "test", meanwhile); err == nil {
					t.Error("that of meanwhile was let through again")
				}
				s.restart(0)
				if _, err := s.gate.Admit(t.Context(), "test", before); err == nil {
					t.Error("let through again after a restart by the right clock")
				}
				s.send("by right clocks", s.signed(0), "")
			})
		}
	}
}
