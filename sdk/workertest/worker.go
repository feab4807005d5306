package workertest

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/sdk"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// patience bounds every wait for something that should take no time.
const patience = time.Minute

// Worker is a worker with the test as its host. Its methods may be used by many
// goroutines at once, but for those that start and end it.
type Worker struct {
	Identity *identity.Identity
	// Dir is the worker's folder.
	Dir string
	// Sender signs the envelopes that Envelope and Send make.
	Sender ed25519.PrivateKey

	t      testing.TB
	host   *host
	folder *os.File // Dir, held open: its path in /proc is short enough for a socket
	run    func(ctx context.Context) process
	conn   *grpc.ClientConn
	log    *logBuffer

	process process

	mu   sync.Mutex
	link *link
}

// process is a worker that runs, in this process or one of its own.
type process struct {
	done <-chan error // gives its end, once
	stop func()       // asks it to end in good order
	kill func()       // ends it at once; nil in this process
}

// Option changes how a worker is made.
type Option func(*settings)

type settings struct {
	config []byte
}

// Config is the worker's config.json, as JSON of v; the default is {}.
func Config(v any) Option {
	return func(s *settings) {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err) // a fault of the test's own code
		}
		s.config = data
	}
}

// Start runs a worker of newType's type in the test's process, and returns when
// it answers.
func Start(t testing.TB, newType func() sdk.Type, options ...Option) *Worker {
	t.Helper()
	w := New(t, newType, options...)
	w.Start()
	return w
}

// New makes the folder of a worker of newType's type, to be started by Start or
// Run in the test's process. newType is called for every start.
func New(t testing.TB, newType func() sdk.Type, options ...Option) *Worker {
	t.Helper()
	descriptor, err := sdk.Describe(newType())
	must(t, err)
	w := newWorker(t, descriptor, options)
	w.run = func(ctx context.Context) process {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- sdk.ServeWorker(ctx, newType(), w.ownDir(), w.log.logger()) }()
		return process{done: done, stop: cancel}
	}
	return w
}

func newWorker(t testing.TB, d *workerv1.TypeDescriptor, options []Option) *Worker {
	t.Helper()
	s := settings{config: []byte("{}")}
	for _, option := range options {
		option(&s)
	}
	w := &Worker{t: t, Dir: t.TempDir(), Sender: newKey(t), host: newHost(t), log: &logBuffer{}}
	w.Identity = w.host.makeFolder(t, w.Dir, d, s.config)
	var err error
	w.folder, err = os.Open(w.Dir)
	must(t, err)
	w.conn = w.dial()
	t.Cleanup(w.cleanUp)
	return w
}

func (w *Worker) cleanUp() {
	if w.process.done != nil {
		if err := w.Stop(); err != nil {
			w.t.Errorf("stop worker: %v", err)
		}
	}
	w.conn.Close()
	w.folder.Close()
	if w.t.Failed() {
		w.t.Logf("log of the worker:\n%s", w.Log())
	}
}

// ownDir is the worker's folder as a path of this process.
func (w *Worker) ownDir() string { return "/proc/self/fd/" + strconv.Itoa(int(w.folder.Fd())) }

// dial makes a connection that connects whenever the worker is there. A call
// while it is not there fails.
func (w *Worker) dial() *grpc.ClientConn {
	w.t.Helper()
	tls, err := w.host.authority.HostTLS(w.Identity.WorkerSerial)
	must(w.t, err)
	retry := backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}
	conn, err := grpc.NewClient("passthrough:///worker",
		grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", w.Socket())
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: patience}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessage)),
		grpc.WithNoProxy(),
	)
	must(w.t, err)
	return conn
}

// Socket is the path of the worker's socket, short enough to be dialled.
func (w *Worker) Socket() string { return w.ownDir() + "/" + wire.Socket }

// Log is what the worker has logged so far.
func (w *Worker) Log() string { return w.log.String() }

// Start starts the worker and returns when it answers; again after Stop or Kill.
func (w *Worker) Start() {
	w.t.Helper()
	w.process = w.run(context.Background())
	answers := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := w.firstHeartbeat(ctx, grpc.WaitForReady(true))
		for status.Code(err) == codes.Unavailable { // the connection to a former process
			_, err = w.firstHeartbeat(ctx, grpc.WaitForReady(true))
		}
		answers <- err
	}()
	select {
	case err := <-answers:
		if err != nil {
			w.t.Fatalf("start worker: %v\n%s", err, w.Log())
		}
	case err := <-w.process.done:
		w.process = process{}
		w.t.Fatalf("the worker ended at its start: %v\n%s", err, w.Log())
	}
}

// Run runs the worker until it ends by itself or ctx does, and gives the error
// of its end: for workers that shall not start.
func (w *Worker) Run(ctx context.Context) error {
	p := w.run(ctx)
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		p.stop()
		return <-p.done
	}
}

// Stop ends the worker as its host does, by SIGTERM or what stands for it, and
// gives the error of its end.
func (w *Worker) Stop() error {
	if w.process.done == nil {
		return errors.New("stop worker: it does not run")
	}
	w.process.stop()
	return w.Wait()
}

// Wait waits until the worker ends by itself and gives the error of its end.
func (w *Worker) Wait() error {
	err := <-w.process.done
	w.process = process{}
	w.unlink()
	return err
}

// Heartbeat is one sign of life, on a stream of its own.
func (w *Worker) Heartbeat(ctx context.Context) *workerv1.HeartbeatResponse {
	w.t.Helper()
	h, err := w.firstHeartbeat(ctx)
	must(w.t, err)
	return h
}

func (w *Worker) firstHeartbeat(ctx context.Context, options ...grpc.CallOption) (*workerv1.HeartbeatResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := workerv1.NewWorkerServiceClient(w.conn).Heartbeat(ctx, options...)
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

// Client speaks the worker plane as the worker's host does.
func (w *Worker) Client() workerv1.WorkerServiceClient {
	return workerv1.NewWorkerServiceClient(w.conn)
}
