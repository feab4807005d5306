package control_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

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
	log    func(string) (*os.File, error)
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

func (b *backend) Log(_ context.Context, ref string) (*os.File, error) { return b.log(ref) }

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
		case <-time.After(10 * time.Second):
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

func TestSocket(t *testing.T) {
	old := unix.Umask(0) // as loose as it gets
	defer unix.Umask(old)
	dir := filepath.Join(privateDir(t), strings.Repeat("long/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "host.sock")
	// A dead host's socket stays behind; the next host takes its place.
	stale, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if err := errors.Join(unix.Bind(stale, &unix.SockaddrUnix{Name: "host.sock"}), unix.Close(stale)); err != nil {
		t.Fatal(err)
	}
	s := serve(t, &backend{status: func() (control.Status, error) { return control.Status{HostID: "h"}, nil }}, socket)
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info.Mode(), err)
	}
	got, err := dial(t, socket).GetStatus(t.Context(), &hostv1.GetStatusRequest{})
	if err != nil || got.GetHostId() != "h" || int(got.GetPid()) != os.Getpid() {
		t.Fatalf("status %v, %v", got, err)
	}
	s.stop()
	awaitGone(t, socket)
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
	for end := time.Now().Add(5 * time.Second); !done(); {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestSocketRefused(t *testing.T) {
	open := privateDir(t)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(privateDir(t), "host.sock")
	if err := os.WriteFile(taken, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(open, "host.sock"): worker.ErrInvalid,
		taken:                            worker.ErrConflict,
		filepath.Join(open, "missing", "host.sock"):  os.ErrNotExist,
		filepath.Join(taken, "host.sock"):            unix.ENOTDIR,
		filepath.Join(privateDir(t), longName(t)):    unix.EINVAL,
		filepath.Join(privateDir(t), "x\x00y", "in"): unix.EINVAL,
	} {
		if _, err := control.New(control.Config{Socket: path}); !errors.Is(err, want) {
			t.Errorf("New on %s: %v, want %v", path, err, want)
		}
	}
	if data, err := os.ReadFile(taken); string(data) != "mine" {
		t.Errorf("a file in the way was touched: %v", err)
	}
}

func longName(t *testing.T) string {
	t.Helper()
	return strings.Repeat("s", 200)
}

// TestStranger connects as another user through a socket that was opened to all.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test takes another user's identity: run it as root")
	}
	dir := privateDir(t)
	s := serve(t, &backend{}, filepath.Join(dir, "s"))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(s.socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its identity
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			refused <- errno
			return
		}
		refused <- func() error {
			conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/s", fd))
			if err != nil {
				return fmt.Errorf("the stranger did not reach the socket: %w", err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("read %d bytes, %w: the stranger was let in", n, err)
			}
			return nil
		}()
	}()
	if err := <-refused; err != nil {
		t.Fatal(err)
	}
	if got := s.log.String(); !strings.Contains(got, "connection refused") || !strings.Contains(got, "uid=65534") {
		t.Fatalf("log: %s", got)
	}
}

// TestFaults holds the table from errors to codes.
func TestFaults(t *testing.T) {
	b := &backend{}
	h := host(t, b)
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{worker.ErrInvalid, codes.InvalidArgument, "invalid"},
		{worker.ErrNotFound, codes.NotFound, "not_found"},
		{worker.ErrConflict, codes.AlreadyExists, "conflict"},
		{worker.ErrUnavailable, codes.Unavailable, "unavailable"},
		{worker.ErrExhausted, codes.ResourceExhausted, "exhausted"},
		{worker.ErrDeadline, codes.DeadlineExceeded, "deadline"},
		{worker.ErrCorrupt, codes.DataLoss, "corrupt"},
		{context.Canceled, codes.Canceled, "canceled"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "deadline"},
		{errors.New("a bug"), codes.Internal, "internal"},
		{status.Error(codes.NotFound, "of somebody else"), codes.Internal, "internal"},
		{worker.Refuse("replayed", "seen"), codes.PermissionDenied, "replayed"},
		{worker.Refuse("sender_unknown", "who"), codes.PermissionDenied, "sender_unknown"},
		{worker.Refuse("schema_mismatch", "no"), codes.InvalidArgument, "schema_mismatch"},
		{worker.Refuse("payload_not_json", "no"), codes.InvalidArgument, "payload_not_json"},
		{worker.Refuse("payload_too_large", "no"), codes.InvalidArgument, "payload_too_large"},
		{worker.Refuse("malformed", "no"), codes.InvalidArgument, "malformed"},
		{worker.Refuse("rate_limited", "no"), codes.ResourceExhausted, "rate_limited"},
		{worker.Refuse("overloaded", "no"), codes.ResourceExhausted, "overloaded"},
		{worker.Refuse("worker_unavailable", "no"), codes.Unavailable, "worker_unavailable"},
	} {
		b.status = func() (control.Status, error) {
			return control.Status{}, worker.Hint(fmt.Errorf("do it: %w", c.err), "try again")
		}
		_, err := h.GetStatus(t.Context(), &hostv1.GetStatusRequest{})
		s := status.Convert(err)
		if s.Code() != c.code || s.Message() != "do it: "+c.err.Error() || len(s.Details()) != 1 {
			t.Errorf("%v came as %v with %v", c.err, err, s.Details())
			continue
		}
		info, ok := s.Details()[0].(*errdetails.ErrorInfo)
		if !ok || info.GetReason() != c.reason || info.GetDomain() != "dals" || info.GetMetadata()["hint"] != "try again" {
			t.Errorf("%v came with %v", c.err, s.Details()[0])
		}
	}
}

// TestRefusalsAreHinted: a refusal says what to do, unless its own hint knows
// better, and other errors with the same reason get none.
func TestRefusalsAreHinted(t *testing.T) {
	b := &backend{}
	h := host(t, b)
	for want, err := range map[string]error{
		"sign a new one: each may be sent once": worker.Refuse("replayed", "seen"),
		"wait":                                  worker.Hint(worker.Refuse("replayed", "seen"), "wait"),
		"":                                      worker.Refuse("of_tomorrow", "no"),
	} {
		b.status = func() (control.Status, error) { return control.Status{}, err }
		_, failed := h.GetStatus(t.Context(), &hostv1.GetStatusRequest{})
		info, ok := status.Convert(failed).Details()[0].(*errdetails.ErrorInfo)
		if !ok || info.GetMetadata()["hint"] != want {
			t.Errorf("%v came with %v, want hint %q", err, info, want)
		}
	}
}

func TestSendPassesLargePayloads(t *testing.T) {
	var got control.SendRequest
	h := host(t, &backend{send: func(_ context.Context, r control.SendRequest) (control.SendResult, error) {
		got = r
		return control.SendResult{
			Result: &workerv1.Envelope{Payload: []byte("r")}, Serial: "s", PublicKey: []byte("k"),
			AdmittedIndex: 1, ResultIndex: 2, Duration: 3 * time.Millisecond,
		}, nil
	}})
	payload := make([]byte, 4<<20+1) // one more than the gate lets through
	rand.Read(payload)
	resp, err := h.Send(t.Context(), &hostv1.SendRequest{Envelope: &workerv1.Envelope{Payload: payload}, TimeoutMs: 1500})
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("uid=%d pid=%d", os.Getuid(), os.Getpid()); got.Peer != want {
		t.Errorf("peer %q, want %q", got.Peer, want)
	}
	if !bytes.Equal(got.Envelope.GetPayload(), payload) || got.Timeout != 1500*time.Millisecond {
		t.Errorf("the backend got %d bytes, timeout %s", len(got.Envelope.GetPayload()), got.Timeout)
	}
	if resp.GetWorkerSerial() != "s" || string(resp.GetPublicKey()) != "k" || resp.GetAdmittedIndex() != 1 || resp.GetResultIndex() != 2 ||
		resp.GetDurationMs() != 3 || string(resp.GetResult().GetPayload()) != "r" {
		t.Errorf("response %v", resp)
	}
	_, err = h.Send(t.Context(), &hostv1.SendRequest{Envelope: &workerv1.Envelope{Payload: make([]byte, control.MaxMessage)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit: %v", err)
	}
}

func TestForge(t *testing.T) {
	made := control.WorkerView{
		Worker: worker.Worker{
			Serial: "DMN-TP-1-0000abcd-00001", Name: "nora", Type: "template", TypeVersion: "1.0.0", ClassCode: "A1",
			Model: "DMN-TP-1", LedgerCode: "A1-000001", Port: 20001, State: worker.StateLive, Launcher: "process",
			PublicKey: []byte{1, 2, 3}, Glyph: "g", ManifestSHA256: "m", ImageDigest: "i", Restarts: 4,
			CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.FixedZone("", 3600)),
		},
		VaultIntegrity: true, LastHeartbeat: time.Unix(10, 0), HeartbeatInterval: 5 * time.Second, MissedHeartbeats: 1,
	}
	var asked control.ForgeRequest
	h := host(t, &backend{
		forge: func(_ context.Context, r control.ForgeRequest) (control.ForgeResult, error) {
			asked = r
			return control.ForgeResult{Worker: made, Existed: true}, nil
		},
		plan: func(context.Context, control.ForgeRequest) (control.Plan, error) {
			return control.Plan{Worker: made, Steps: []control.PlanStep{{Step: "s", Makes: "m"}}, Hash: "h",
				Files: []control.PlanFile{{Path: "f", Mode: "0440", Size: 7, SHA256: "ab"}}, Manifest: []byte("{}")}, nil
		},
	})
	request := &hostv1.ForgeRequest{WorkerName: "nora", WorkerType: "template", ClassCode: "A1", TypeVersion: "1.0.0", Config: []byte("{}"), TimeoutMs: 2000, PlanHash: "p"}
	resp, err := h.Forge(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if asked.Name != "nora" || asked.Type != "template" || asked.ClassCode != "A1" || asked.Version != "1.0.0" || string(asked.Config) != "{}" || asked.Timeout != 2*time.Second || asked.PlanHash != "p" {
		t.Errorf("the backend was asked for %+v", asked)
	}
	w := resp.GetWorker()
	if !resp.GetExisted() || len(resp.GetPlan()) != 0 || w.GetCreatedAt() != "2026-01-02T02:04:05.678Z" || w.GetRetiredAt() != "" ||
		w.GetPublicKey() != "AQID" || w.GetHeartbeat().GetLast() != "1970-01-01T00:00:10Z" || w.GetHeartbeat().GetIntervalS() != 5 {
		t.Errorf("response %v", resp)
	}
	request.DryRun = true
	resp, err = h.Forge(t.Context(), request)
	if f := resp.GetFiles(); len(f) != 1 || f[0].GetPath() != "f" || f[0].GetMode() != "0440" || f[0].GetSize() != 7 || f[0].GetSha256() != "ab" || string(resp.GetManifest()) != "{}" {
		t.Errorf("files %v, manifest %s", f, resp.GetManifest())
	}
	if err != nil || resp.GetExisted() || resp.GetPlanHash() != "h" || len(resp.GetPlan()) != 1 || resp.GetWorker().GetWorkerName() != "nora" {
		t.Errorf("dry run: %v, %v", resp, err)
	}
}

func TestOtherCalls(t *testing.T) {
	h := host(t, &backend{
		worker: func(ref string) (control.WorkerDetail, error) {
			return control.WorkerDetail{WorkerView: control.WorkerView{Worker: worker.Worker{Name: ref}}, Identity: []byte("i"), Manifest: []byte("m"),
				Metrics: control.Metrics{StartedAt: time.Unix(1, 0), InFlight: 2, Done: 3, Failed: 4, RSSBytes: 5},
				Tasks:   []*workerv1.TaskKind{{Kind: "template.echo"}}}, nil
		},
		down: func(_ context.Context, timeout time.Duration) (int, error) { return int(timeout.Milliseconds()), nil },
	})
	ctx := t.Context()
	types, err := h.ListTypes(ctx, &hostv1.ListTypesRequest{})
	if err != nil || len(types.GetTypes()) != 1 || types.GetTypes()[0].GetFamily() != "TP" || !types.GetTypes()[0].GetDraining() || types.GetTypes()[0].GetWorkers() != 2 {
		t.Errorf("types %v, %v", types, err)
	}
	plugins, err := h.ListPlugins(ctx, &hostv1.ListPluginsRequest{})
	if err != nil || len(plugins.GetPlugins()) != 1 || plugins.GetPlugins()[0].GetFix() != "f" {
		t.Errorf("plugins %v, %v", plugins, err)
	}
	workers, err := h.ListWorkers(ctx, &hostv1.ListWorkersRequest{WorkerType: "t", State: "live", IncludeRetired: true})
	if err != nil || len(workers.GetWorkers()) != 1 || workers.GetWorkers()[0].GetWorkerType() != "t" || workers.GetWorkers()[0].GetState() != "live" || !workers.GetWorkers()[0].GetVaultIntegrity() {
		t.Errorf("workers %v, %v", workers, err)
	}
	_, err = h.ListWorkers(ctx, &hostv1.ListWorkersRequest{State: "xyz"})
	if code, hint := told(err); code != "invalid" || !strings.Contains(hint, "live, restarting") {
		t.Errorf("workers of state xyz: %v, hint %q", err, hint)
	}
	one, err := h.GetWorker(ctx, &hostv1.GetWorkerRequest{Worker: "nora"})
	if err != nil || one.GetWorker().GetWorkerName() != "nora" || string(one.GetIdentity()) != "i" || string(one.GetManifest()) != "m" {
		t.Errorf("worker %v, %v", one, err)
	}
	m := one.GetMetrics()
	if m.GetStartedAt() != "1970-01-01T00:00:01Z" || m.GetTasksInFlight() != 2 || m.GetTasksDone() != 3 || m.GetTasksFailed() != 4 || m.GetRssBytes() != 5 ||
		len(one.GetTasks()) != 1 || one.GetTasks()[0].GetKind() != "template.echo" {
		t.Errorf("metrics %v, tasks %v", m, one.GetTasks())
	}
	retired, err := h.Retire(ctx, &hostv1.RetireRequest{Worker: "nora", GraceMs: 1000})
	if err != nil || retired.GetWorker().GetState() != "retired" || retired.GetWorker().GetStateReason() != "1s" {
		t.Errorf("retire %v, %v", retired, err)
	}
	added, err := h.AddClient(ctx, &hostv1.AddClientRequest{Name: "ci", PublicKey: make([]byte, 32)})
	if err != nil || added.GetClient().GetName() != "ci" || added.GetClient().GetId() != "key:32" {
		t.Errorf("add client %v, %v", added, err)
	}
	clients, err := h.ListClients(ctx, &hostv1.ListClientsRequest{})
	if err != nil || len(clients.GetClients()) != 2 || clients.GetClients()[0].GetRevokedAt() != "" || clients.GetClients()[1].GetRevokedAt() != "1970-01-01T00:00:01Z" {
		t.Errorf("clients %v, %v", clients, err)
	}
	revoked, err := h.RevokeClient(ctx, &hostv1.RevokeClientRequest{Name: "ci"})
	if err != nil || revoked.GetClient().GetRevokedAt() == "" {
		t.Errorf("revoke %v, %v", revoked, err)
	}
	down, err := h.Down(ctx, &hostv1.DownRequest{TimeoutMs: 7})
	if err != nil || down.GetWorkersStopped() != 7 {
		t.Errorf("down %v, %v", down, err)
	}
}

// told is the reason and the hint of an error as it travelled.
func told(err error) (reason, hint string) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), info.GetMetadata()["hint"]
		}
	}
	return "", ""
}

// TestStopWaits: a call that runs when the host is told to end is answered.
func TestStopWaits(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := serve(t, &backend{down: func(context.Context, time.Duration) (int, error) {
		close(entered)
		<-leave
		return 3, nil
	}}, filepath.Join(privateDir(t), "s"))
	h := dial(t, s.socket)
	answered := make(chan error, 1)
	go func() {
		resp, err := h.Down(context.Background(), &hostv1.DownRequest{})
		if err == nil && resp.GetWorkersStopped() != 3 {
			err = fmt.Errorf("stopped %d", resp.GetWorkersStopped())
		}
		answered <- err
	}()
	<-entered
	s.stop()
	eventually(t, func() bool { // no new callers while the old one is served
		_, err := net.Dial("unix", s.socket)
		return err != nil
	})
	close(leave)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if log := s.log.String(); strings.Contains(log, "calls cut") {
		t.Errorf("log: %s", log)
	}
}

// TestStopCuts: what runs on beyond the drain is cut, counted and told why; what
// does not heed it either is not waited for.
func TestStopCuts(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := serve(t, &backend{
		send: func(ctx context.Context, _ control.SendRequest) (control.SendResult, error) {
			entered <- struct{}{}
			<-ctx.Done()
			if cause := context.Cause(ctx); !errors.Is(cause, worker.ErrUnavailable) {
				t.Errorf("cause %v", cause)
			}
			return control.SendResult{}, ctx.Err()
		},
		down: func(context.Context, time.Duration) (int, error) {
			entered <- struct{}{}
			<-leave
			return 0, nil
		},
	}, filepath.Join(privateDir(t), "s"))
	h := dial(t, s.socket)
	heard, gone := make(chan error), make(chan error)
	for range 2 {
		go func() {
			_, err := h.Send(context.Background(), &hostv1.SendRequest{})
			heard <- err
		}()
		<-entered
	}
	go func() {
		_, err := h.Down(context.Background(), &hostv1.DownRequest{})
		gone <- err
	}()
	<-entered
	since := time.Now()
	s.stop()
	for range 2 {
		err := <-heard
		if reason, _ := told(err); reason != "unavailable" || !strings.Contains(err.Error(), "the host ends") {
			t.Errorf("who was cut heard %v", err)
		}
		if took := time.Since(since); took < drain {
			t.Errorf("cut after %s", took)
		}
	}
	if err := <-gone; status.Code(err) != codes.Unavailable {
		t.Errorf("who heeds nothing: %v", err)
	}
	close(leave)
	awaitGone(t, s.socket)
	if log := s.log.String(); !strings.Contains(log, "running calls cut: calls=3 after=300ms") {
		t.Errorf("log: %s", log)
	}
}

func TestStopBeforeServe(t *testing.T) {
	b := &backend{}
	s, err := control.New(control.Config{
		Socket: filepath.Join(privateDir(t), "s"), Forger: b, Workers: b, Sender: b, Clients: b, Host: b, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
}
