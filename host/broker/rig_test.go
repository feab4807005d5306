package broker

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	serial = worker.Serial("DMN-TP-1-0000abcd-00001")
	hostID = "0123456789abcdef"
)

// gate lets everything pass and remembers what it was told of later.
type gate struct {
	worker worker.Worker
	before func() // what happens right after the gate

	mu      sync.Mutex
	refused []error
}

func (g *gate) Admit(_ context.Context, _ string, env *workerv1.Envelope) (Admitted, error) {
	h, err := envelope.Parse(env)
	if err == nil && g.before != nil {
		g.before()
	}
	return Admitted{Envelope: env, Header: h, Worker: g.worker}, err
}

func (g *gate) AdmitCall(ctx context.Context, peer string, _ worker.Worker, env *workerv1.Envelope) (Admitted, error) {
	return g.Admit(ctx, peer, env)
}

func (g *gate) AdmitIngress(ctx context.Context, peer string, _ ed25519.PublicKey, _ string, env *workerv1.Envelope) (Admitted, error) {
	return g.Admit(ctx, peer, env)
}

func (g *gate) Refused(ctx context.Context, _ string, _ Admitted, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = append(g.refused, err)
	return errors.Join(err, ctx.Err())
}

// rig is a broker with real neighbours, one enrolled client and one worker.
type rig struct {
	*Broker
	t        *testing.T
	dir      string // of the worker
	registry *registry.Registry
	gate     *gate
	auth     *identity.Authority
	fake     *fake
	client   ed25519.PrivateKey
	log      *logged
	peer     worker.Worker
}

// newRig makes a rig whose worker is not served yet.
func newRig(t *testing.T, f *fake) *rig { return newRigIn(t, f, t.TempDir()) }

func newRigIn(t *testing.T, f *fake, data string) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), fake: f, log: &logged{}}
	_, authority := pair(t)
	public, key := pair(t)
	f.key = key
	_, r.client = pair(t)
	var err error
	if r.auth, err = identity.NewAuthority(hostID, authority); err != nil {
		t.Fatal(err)
	}
	if r.registry, err = registry.Open(t.Context(), registry.Config{Path: filepath.Join(data, "registry.db")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.registry.Close() })
	r.peer = worker.Worker{
		Serial: serial, Name: "nora", UID: os.Getuid(), PublicKey: public, State: worker.StateLive, LedgerCode: "A1-000001",
		CreatedAt: time.Now(),
	}
	r.gate = &gate{worker: r.peer}
	r.update(func(tx *registry.Tx) error {
		key := r.client.Public().(ed25519.PublicKey)
		return errors.Join(tx.InsertWorker(r.peer), tx.AddClient(registry.Client{ID: envelope.ClientID(key), Name: "ann", PublicKey: key}))
	})
	r.open()
	return r
}

// open makes the broker, as a host does when it starts.
func (r *rig) open() {
	r.t.Helper()
	_, stamp := pair(r.t)
	b, err := New(r.t.Context(), Config{
		Gate: r.gate, Registry: r.registry, Authority: r.auth, StampKey: stamp, Interval: limit,
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: r.log}),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.Broker = b
	r.t.Cleanup(b.Close)
}

// served makes a rig whose worker is served and attached.
func served(t *testing.T, f *fake) *rig {
	t.Helper()
	r := newRig(t, f)
	r.serve()
	r.attach()
	return r
}

// up makes a rig whose worker is connected.
func up(t *testing.T, f *fake) *rig {
	t.Helper()
	r := served(t, f)
	eventually(t, "connected", func() bool { return r.Health(serial).Connected })
	return r
}

func (r *rig) attach() {
	r.Attach(r.peer, r.dir)
	r.Start()
}

// serve lets the worker listen.
func (r *rig) serve() { r.t.Helper(); r.serveAt(time.Now()) }

// serveAt is serve with a certificate that was made at that time.
func (r *rig) serveAt(made time.Time) {
	r.t.Helper()
	cert, err := r.auth.IssueWorker(string(serial), r.fake.key.Public().(ed25519.PublicKey), made)
	if err != nil {
		r.t.Fatal(err)
	}
	key, err := identity.MarshalKey(r.fake.key)
	if err != nil {
		r.t.Fatal(err)
	}
	config, err := identity.WorkerTLS(cert, key, r.auth.CertPEM(), hostID)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(r.dir, "run"), 0o700); err != nil {
		r.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(r.dir, "run", "worker.sock"))
	if err != nil {
		r.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.MaxRecvMsgSize(wire.MaxMessage), grpc.WaitForHandlers(true))
	workerv1.RegisterWorkerServiceServer(server, r.fake)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	r.t.Cleanup(func() {
		server.Stop()
		<-ended
	})
}

// envelope is one from the enrolled client.
func (r *rig) envelope(h *workerv1.Header, payload []byte) *workerv1.Envelope {
	r.t.Helper()
	h = proto.CloneOf(h)
	if h == nil {
		h = &workerv1.Header{}
	}
	h.Recipient, h.Kind = string(serial), "template.echo"
	e, err := envelope.New(r.client, envelope.ClientID(r.client.Public().(ed25519.PublicKey)), h, payload)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

func (r *rig) send(ctx context.Context, size int, timeout time.Duration) (Reply, error) {
	return r.Send(ctx, "test", r.envelope(nil, make([]byte, size)), timeout)
}

func (r *rig) update(f func(*registry.Tx) error) {
	r.t.Helper()
	if err := r.registry.Update(r.t.Context(), f); err != nil {
		r.t.Fatal(err)
	}
}

// count counts the entries that are of a kind and status.
func (r *rig) count(kind record.Kind, status string) (n int) {
	r.t.Helper()
	for g, err := range r.registry.Groups(r.t.Context(), 0) {
		if err != nil {
			r.t.Fatal(err)
		}
		for _, line := range g.Entries {
			e, err := record.Decode(line)
			if err != nil {
				r.t.Fatal(err)
			}
			if e.Kind == kind && e.Envelope.Status == status {
				n++
			}
		}
	}
	return n
}

// settled checks that everything that was admitted was closed once.
func (r *rig) settled() {
	r.t.Helper()
	eventually(r.t, "nothing is outstanding", func() bool {
		left, err := r.registry.Deliveries(r.t.Context(), "")
		return err == nil && len(left) == 0
	})
	closed := r.count(record.Result, "ok") + r.count(record.Result, statusDeadline) + r.count(record.Result, statusLost)
	if admitted := r.count(record.Admitted, ""); admitted != closed {
		r.t.Errorf("%d admitted, %d closed", admitted, closed)
	}
}

// givenBack waits until no place of a session is taken: they are given back once
// all is settled, and not in the same moment.
func (r *rig) givenBack(s *session) {
	r.t.Helper()
	eventually(r.t, "all places are given back", func() bool {
		s.places.mu.Lock()
		defer s.places.mu.Unlock()
		return s.places.count == 0 && s.places.bytes == 0
	})
}

func pair(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// limit is how long a test waits for what must come.
const limit = time.Minute

func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !met(); {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// codeOf is the code of a refusal, or "".
func codeOf(err error) string {
	if no, ok := errors.AsType[*worker.Refusal](err); ok {
		return no.Code
	}
	return ""
}

// logged keeps what is logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(line string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), line)
}
