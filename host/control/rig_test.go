package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a host made of functions; the zero function panics when called.
type backend struct {
	forge  func(context.Context, control.ForgeRequest) (control.ForgeResult, error)
	plan   func(context.Context, control.ForgeRequest) (control.Plan, error)
	worker func(string) (control.WorkerDetail, error)
	log    func(string) (control.Log, error)
	send   func(context.Context, control.SendRequest) (control.SendResult, error)
	status func() (control.Status, error)
	down   func(context.Context, time.Duration) (int, error)
}

func (b *backend) Forge(ctx context.Context, r control.ForgeRequest) (control.ForgeResult, error) {
	return b.forge(ctx, r)
}

func (b *backend) Plan(ctx context.Context, r control.ForgeRequest) (control.Plan, error) {
	return b.plan(ctx, r)
}

func (b *backend) Retire(_ context.Context, ref string, grace time.Duration) (worker.Worker, error) {
	return worker.Worker{Name: ref, State: worker.StateRetired, StateReason: grace.String()}, nil
}

func (b *backend) Workers(_ context.Context, f control.WorkerFilter) ([]control.WorkerView, error) {
	return []control.WorkerView{{Worker: worker.Worker{Type: f.Type, State: f.State}, VaultIntegrity: f.Retired}}, nil
}

func (b *backend) Worker(_ context.Context, ref string) (control.WorkerDetail, error) {
	return b.worker(ref)
}

func (b *backend) Log(_ context.Context, ref string) (control.Log, error) { return b.log(ref) }

func (b *backend) Send(ctx context.Context, r control.SendRequest) (control.SendResult, error) {
	return b.send(ctx, r)
}

func (b *backend) AddClient(_ context.Context, name string, key []byte) (control.Client, error) {
	return control.Client{Name: name, ID: fmt.Sprintf("key:%d", len(key))}, nil
}

func (b *backend) ListClients(context.Context) ([]control.Client, error) {
	return []control.Client{{Name: "a"}, {Name: "b", RevokedAt: time.Unix(1, 0)}}, nil
}

func (b *backend) RevokeClient(_ context.Context, name string) (control.Client, error) {
	return control.Client{Name: name, RevokedAt: time.Unix(1, 0)}, nil
}

func (b *backend) Status(context.Context) (control.Status, error) { return b.status() }

func (b *backend) Types(context.Context) ([]control.Type, error) {
	return []control.Type{{Descriptor: &workerv1.TypeDescriptor{Name: "template", Family: "TP"}, Digest: "d", Workers: 2, Draining: true}}, nil
}

func (b *backend) Plugins(context.Context) ([]control.Plugin, error) {
	return []control.Plugin{{Path: "p", State: "quarantined", Reason: "r", Fix: "f"}}, nil
}

func (b *backend) Down(ctx context.Context, timeout time.Duration) (int, error) {
	return b.down(ctx, timeout)
}

// logBuffer is a log that several goroutines write and a test reads.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// drain is what a server under test gives its running calls.
const drain = 300 * time.Millisecond

// running is a server under test.
type running struct {
	socket string
	log    *logBuffer
	stop   context.CancelFunc
	ended  <-chan error
}

// serve runs the control API of b until the test ends or stop is called.
func serve(t *testing.T, b *backend, socket string) running {
	t.Helper()
	log := &logBuffer{}
	s, err := control.New(control.Config{
		Socket: socket, Forger: b, Workers: b, Sender: b, Clients: b, Host: b, Drain: drain,
		Logger: hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Trace}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Serve does not end")
		}
	})
	return running{socket: socket, log: log, stop: stop, ended: ended}
}

func privateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dial speaks to a socket whose path may be longer than an address holds.
func dial(t *testing.T, socket string) hostv1.HostServiceClient {
	t.Helper()
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	short := fmt.Sprintf("unix:/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket))
	conn, err := grpc.NewClient(short, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return hostv1.NewHostServiceClient(conn)
}

func host(t *testing.T, b *backend) hostv1.HostServiceClient {
	t.Helper()
	return dial(t, serve(t, b, filepath.Join(privateDir(t), "host.sock")).socket)
}

func awaitGone(t *testing.T, path string) {
	t.Helper()
	eventually(t, func() bool {
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist)
	})
}

func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (b *backend) Events(_ context.Context, ref string, since time.Time, from uint64, visit func(control.Event) error) (uint64, error) {
	if ref == "unknown" {
		return from, worker.ErrNotFound
	}
	for ; from < 300; from++ {
		at := time.Unix(int64(from), 0)
		if at.Before(since) {
			continue
		}
		if err := visit(control.Event{At: at, Event: "lost", Name: ref, Serial: "DMN", Reason: "exit code 3", Index: from}); err != nil {
			return from, err
		}
	}
	return from, nil
}
