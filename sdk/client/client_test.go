package client_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/envelope"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	serial = "DMN-TP-1-0000abcd-00001"
	// likeSerial is a name, and no serial: no number begins with a zero.
	likeSerial = "DMN-TP-01-0000abcd-00001"
)

// fakeHost answers the control API with one worker, "nora", which echoes. It
// really signs; tamper changes what it says before it is sent.
type fakeHost struct {
	hostv1.UnimplementedHostServiceServer

	key    ed25519.PrivateKey // the worker's
	tamper func(header *workerv1.Header, resp *hostv1.SendResponse)
	asked  *workerv1.Header // of the last envelope
	looked []string         // the workers that were asked for, in order
	forged *hostv1.ForgeRequest
	fail   error
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func (h *fakeHost) worker() *hostv1.Worker {
	return &hostv1.Worker{
		WorkerName: "nora", WorkerType: "template", TypeVersion: "1.0.0", ClassCode: "A1", WorkerSerial: serial,
		ModelNumber: "DMN-TP-1", LedgerCode: "A1-000001", Port: 20001, State: "live", Launcher: "process",
		PublicKey: base64.StdEncoding.EncodeToString(public(h.key)), Glyph: "+--+", ManifestSha256: "ab",
		VaultIntegrity: true, Heartbeat: &hostv1.Heartbeat{Last: "2026-01-02T03:04:05.678Z", IntervalS: 5},
		CreatedAt: "2026-01-02T03:04:05Z",
	}
}

func (h *fakeHost) GetStatus(context.Context, *hostv1.GetStatusRequest) (*hostv1.GetStatusResponse, error) {
	return &hostv1.GetStatusResponse{HostId: "h", Pid: 7}, h.fail
}

func (h *fakeHost) ListTypes(context.Context, *hostv1.ListTypesRequest) (*hostv1.ListTypesResponse, error) {
	return &hostv1.ListTypesResponse{Types: []*hostv1.WorkerType{
		{Name: "template", Version: "1.9.0", Family: "TP", Tasks: []*workerv1.TaskKind{{Kind: "template.echo", InputSchema: []byte(`{"type":"object"}`)}}},
		{Name: "template", Version: "1.10.0", Tasks: []*workerv1.TaskKind{{Kind: "template.echo"}}},
		{Name: "template", Version: "2.0.0", Draining: true},
		{Name: "ledger", Version: "0.1.0"},
	}}, nil
}

func (h *fakeHost) ListPlugins(context.Context, *hostv1.ListPluginsRequest) (*hostv1.ListPluginsResponse, error) {
	return &hostv1.ListPluginsResponse{}, nil
}

func (h *fakeHost) Forge(_ context.Context, r *hostv1.ForgeRequest) (*hostv1.ForgeResponse, error) {
	h.forged = r
	if r.GetDryRun() {
		return &hostv1.ForgeResponse{
			Worker: h.worker(), PlanHash: "ff", Plan: []*hostv1.PlanStep{{Step: "open stage", Makes: "a folder"}},
			Files: []*hostv1.PlanFile{{Path: "run/", Mode: "0700"}, {Path: "config.json", Mode: "0440", Size: 2, Sha256: "ab"}}, Manifest: []byte(`{"format":1}`),
		}, nil
	}
	return &hostv1.ForgeResponse{Worker: h.worker()}, nil
}

func (h *fakeHost) ListWorkers(context.Context, *hostv1.ListWorkersRequest) (*hostv1.ListWorkersResponse, error) {
	return &hostv1.ListWorkersResponse{Workers: []*hostv1.Worker{h.worker()}}, nil
}

func (h *fakeHost) GetWorker(_ context.Context, r *hostv1.GetWorkerRequest) (*hostv1.GetWorkerResponse, error) {
	h.looked = append(h.looked, r.GetWorker())
	if r.GetWorker() != "nora" && r.GetWorker() != likeSerial && r.GetWorker() != serial {
		return nil, coded(codes.NotFound, "not_found", "run dals-host workers")
	}
	return &hostv1.GetWorkerResponse{Worker: h.worker(), Identity: []byte(`{"a":1}`), Manifest: []byte("no json")}, nil
}

// coded is an error as the control API gives it.
func coded(code codes.Code, reason, hint string) error {
	s, _ := status.New(code, "worker x: "+reason).WithDetails(
		&errdetails.ErrorInfo{Reason: reason, Domain: "dals", Metadata: map[string]string{"hint": hint}})
	return s.Err()
}

func (h *fakeHost) Send(ctx context.Context, r *hostv1.SendRequest) (*hostv1.SendResponse, error) {
	header, err := envelope.Parse(r.GetEnvelope())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	h.asked = header
	if h.fail != nil {
		return nil, h.fail
	}
	if header.GetKind() == "template.hang" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	key, err := envelope.ParseClientID(header.GetSender())
	if err != nil {
		return nil, err
	}
	if err := envelope.Verify(r.GetEnvelope(), header, key); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	answer := &workerv1.Header{
		Recipient: header.GetSender(), Kind: header.GetKind(), InReplyTo: header.GetId(), Attempt: 1,
		Status: workerv1.ResultStatus_RESULT_STATUS_OK,
	}
	resp := &hostv1.SendResponse{
		WorkerSerial: serial, PublicKey: public(h.key), AdmittedIndex: 6, ResultIndex: 7, DurationMs: 8,
		Result: &workerv1.Envelope{Payload: r.GetEnvelope().GetPayload()},
	}
	if h.tamper != nil {
		h.tamper(answer, resp)
	}
	if resp.Result.Header == nil {
		if resp.Result, err = envelope.New(h.key, serial, answer, resp.Result.GetPayload()); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (h *fakeHost) StreamLogs(_ *hostv1.StreamLogsRequest, stream grpc.ServerStreamingServer[hostv1.StreamLogsResponse]) error {
	if err := stream.Send(&hostv1.StreamLogsResponse{Lines: []string{"a", "b"}}); err != nil {
		return err
	}
	if err := stream.Send(&hostv1.StreamLogsResponse{Lines: []string{"c"}}); err != nil {
		return err
	}
	return h.fail
}

// start serves h on a unix socket and returns a client with a key of its own.
func start(t *testing.T, h *fakeHost) *client.Client {
	t.Helper()
	if h.key == nil {
		h.key = newKey(t)
	}
	c, err := client.Dial(t.Context(), client.Config{Host: listen(t, h), Key: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// listen serves h below a path that no socket address can hold.
func listen(t *testing.T, h *fakeHost) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "host.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/host.sock", dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(8 << 20))
	hostv1.RegisterHostServiceServer(server, h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestDialNobody(t *testing.T) {
	dir := t.TempDir()
	for _, socket := range []string{filepath.Join(dir, "host.sock"), "unix:" + filepath.Join(dir, "missing", "host.sock")} {
		_, err := client.Dial(t.Context(), client.Config{Host: socket})
		var e *client.Error
		if !errors.As(err, &e) || e.Code != client.CodeUnavailable || !strings.Contains(e.Hint, "dals-host serve") || !strings.Contains(e.Message, "host.sock") {
			t.Errorf("Dial(%s): %v", socket, err)
		}
	}
}

// TestReconnect: the host was killed and started again between two calls.
func TestReconnect(t *testing.T) {
	h := &fakeHost{key: newKey(t)}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	serve := func() *grpc.Server {
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		hostv1.RegisterHostServiceServer(server, h)
		go server.Serve(listener)
		return server
	}
	first := serve()
	c, err := client.Dial(t.Context(), client.Config{Host: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	var e *client.Error
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || e.Code != client.CodeUnavailable || e.Hint == "" {
		t.Fatalf("without a host: %v", err)
	}
	defer serve().Stop()
	for end := time.Now().Add(time.Minute); ; {
		if _, err := c.Status(t.Context()); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("it does not connect again: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestSend(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	for _, to := range []string{"nora", serial, likeSerial, "pool:template"} {
		got, err := c.Send(t.Context(), client.SendRequest{Worker: to, Kind: "template.echo", Input: map[string]string{"message": "hi"}})
		if err != nil {
			t.Fatalf("send to %s: %v", to, err)
		}
		want := client.Result{
			ID: h.asked.GetId(), WorkerSerial: serial, Kind: "template.echo", Status: "ok", Result: json.RawMessage(`{"message":"hi"}`),
			DurationMS: 8, SignedBy: base64.StdEncoding.EncodeToString(public(h.key)), LogIndex: 7,
		}
		if a, b := mustJSON(t, got), mustJSON(t, want); a != b {
			t.Errorf("result %s, want %s", a, b)
		}
	}
	big := json.RawMessage(`"` + strings.Repeat("x", 4<<20-2) + `"`)
	if got, err := c.Send(t.Context(), client.SendRequest{Worker: serial, Kind: "template.echo", Input: big}); err != nil || len(got.Result) != 4<<20 {
		t.Errorf("4 MiB: %d bytes back, %v", len(got.Result), err)
	}
	if got, err := c.Send(t.Context(), client.SendRequest{Worker: serial, Kind: "template.info"}); err != nil || string(got.Result) != "{}" {
		t.Errorf("no input went as %s, %v", got.Result, err)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestSendRefusedBeforehand(t *testing.T) {
	c := start(t, &fakeHost{})
	for name, r := range map[string]client.SendRequest{
		"payload_too_large": {Worker: serial, Kind: "template.echo", Input: make([]byte, 4<<20+1)},
		"malformed":         {Worker: serial, Kind: "Template Echo"},
		"not_found":         {Worker: "nobody", Kind: "template.echo"},
	} {
		_, err := c.Send(t.Context(), r)
		var e *client.Error
		if !errors.As(err, &e) || e.Code != name {
			t.Errorf("%s: %v", name, err)
		}
		if name == "not_found" && e.Hint != "run dals-host workers" {
			t.Errorf("hint %q", e.Hint)
		}
	}
	keyless, err := client.Dial(t.Context(), client.Config{Host: listen(t, &fakeHost{key: newKey(t)})})
	if err != nil {
		t.Fatal(err)
	}
	defer keyless.Close()
	var e *client.Error
	if _, err := keyless.Send(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.echo"}); !errors.As(err, &e) || e.Code != client.CodeInvalid {
		t.Errorf("without a key: %v", err)
	}
}

// TestResultIsVerified: whatever is wrong with an answer, it is not a result.
func TestResultIsVerified(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	other := newKey(t)
	const elsewhere = "DMN-TP-1-0000abcd-00002"
	for name, tamper := range map[string]func(*workerv1.Header, *hostv1.SendResponse){
		"another key":     func(_ *workerv1.Header, r *hostv1.SendResponse) { r.PublicKey = public(other) },
		"no key":          func(_ *workerv1.Header, r *hostv1.SendResponse) { r.PublicKey = nil },
		"another request": func(a *workerv1.Header, _ *hostv1.SendResponse) { a.InReplyTo = "0190b5a0-0000-7000-8000-000000000000" },
		"another kind":    func(a *workerv1.Header, _ *hostv1.SendResponse) { a.Kind = "template.other" },
		"no JSON":         func(_ *workerv1.Header, r *hostv1.SendResponse) { r.Result.Payload = []byte("no json") },
		"another client":  func(a *workerv1.Header, _ *hostv1.SendResponse) { a.Recipient = envelope.ClientID(public(other)) },
		"another worker":  func(_ *workerv1.Header, r *hostv1.SendResponse) { r.WorkerSerial = elsewhere },
		"no result": func(a *workerv1.Header, _ *hostv1.SendResponse) {
			a.Status, a.InReplyTo, a.Attempt, a.Recipient = 0, "", 0, serial
		},
		"another payload": func(a *workerv1.Header, r *hostv1.SendResponse) {
			r.Result, _ = envelope.New(h.key, serial, a, []byte(`{"paid":true}`))
			r.Result.Payload = []byte(`{"paid":false}`)
		},
		"signed by a stranger": func(a *workerv1.Header, r *hostv1.SendResponse) {
			r.Result, _ = envelope.New(other, serial, a, []byte(`{}`))
			r.PublicKey = public(other)
		},
		"signed as another": func(a *workerv1.Header, r *hostv1.SendResponse) {
			r.Result, _ = envelope.New(h.key, elsewhere, a, []byte(`{}`))
		},
		"from another than asked": func(a *workerv1.Header, r *hostv1.SendResponse) {
			r.Result, _ = envelope.New(h.key, elsewhere, a, []byte(`{}`))
			r.WorkerSerial = elsewhere
		},
		"nothing": func(_ *workerv1.Header, r *hostv1.SendResponse) { r.Result = &workerv1.Envelope{Header: []byte{}} },
	} {
		h.tamper = tamper
		got, err := c.Send(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.echo"})
		var e *client.Error
		if !errors.As(err, &e) || e.Code != client.CodeBadResult || got.Status != client.StatusUnknown || got.ID != h.asked.GetId() || got.Result != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestAnswerCannotVouchForItself: the key that an answer names is not the one
// that it is verified under, however the worker was asked for.
func TestAnswerCannotVouchForItself(t *testing.T) {
	other := newKey(t)
	stranger := func(a *workerv1.Header, r *hostv1.SendResponse) {
		r.Result, _ = envelope.New(other, serial, a, []byte(`{}`))
		r.PublicKey = public(other)
	}
	check := func(name string, got client.Result, err error) {
		t.Helper()
		var e *client.Error
		if !errors.As(err, &e) || e.Code != client.CodeBadResult || got.Status != client.StatusUnknown || got.Result != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, to := range []string{"nora", serial, "pool:template"} {
		request := client.SendRequest{Worker: to, Kind: "template.echo"}
		c := start(t, &fakeHost{tamper: stranger})
		got, err := c.Send(t.Context(), request)
		check("send to "+to, got, err)
		c = start(t, &fakeHost{tamper: stranger})
		env, err := c.Sign(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		got, err = c.SendEnvelope(t.Context(), env, 0)
		check("send envelope to "+to, got, err)
	}
	// The first key of a serial is its key, whatever the host says later.
	h := &fakeHost{}
	c := start(t, h)
	request := client.SendRequest{Worker: "nora", Kind: "template.echo"}
	if _, err := c.Send(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	h.key = other
	got, err := c.Send(t.Context(), request)
	check("another key than before", got, err)
}

// TestKeyIsLookedUpFirst and once: before anything is sent.
func TestKeyIsLookedUpFirst(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	for range 2 {
		if _, err := c.Send(t.Context(), client.SendRequest{Worker: serial, Kind: "template.echo"}); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.looked) != 1 || h.looked[0] != serial {
		t.Errorf("looked up %v", h.looked)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	h = &fakeHost{}
	c = start(t, h)
	env, err := c.Sign(t.Context(), client.SendRequest{Worker: serial, Kind: "template.echo"})
	if err != nil || len(h.looked) != 0 {
		t.Fatalf("signing for a serial asked for %v: %v", h.looked, err)
	}
	got, err := c.SendEnvelope(ended, env, 0)
	if !errors.Is(err, context.Canceled) || got.ID != "" || got.Status != "" || h.asked != nil {
		t.Errorf("without a key it was sent: %+v, %v", got, err)
	}
}

// TestUnknownSerial: that a host knows no such worker is for its gate to say,
// which writes it down. An answer from one that has no key is no result.
func TestUnknownSerial(t *testing.T) {
	const elsewhere = "DMN-TP-1-0000abcd-00002"
	h := &fakeHost{fail: coded(codes.PermissionDenied, "recipient_unknown", "")}
	c := start(t, h)
	request := client.SendRequest{Worker: elsewhere, Kind: "template.echo"}
	got, err := c.Send(t.Context(), request)
	var e *client.Error
	if !errors.As(err, &e) || e.Code != "recipient_unknown" || got.ID == "" || got.Status != "" {
		t.Errorf("refused: %+v, %v", got, err)
	}
	h.fail = nil
	h.tamper = func(a *workerv1.Header, r *hostv1.SendResponse) {
		r.Result, _ = envelope.New(h.key, elsewhere, a, []byte(`{}`))
		r.WorkerSerial = elsewhere
	}
	got, err = c.Send(t.Context(), request)
	if !errors.As(err, &e) || e.Code != client.CodeBadResult || got.Status != client.StatusUnknown {
		t.Errorf("answered: %+v, %v", got, err)
	}
}

func TestTaskError(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	for _, test := range []struct {
		status              workerv1.ResultStatus
		payload             string
		said, code, message string
	}{
		{workerv1.ResultStatus_RESULT_STATUS_FAILED, `{"code":"failed","error":"no paper"}`, "failed", "failed", "no paper"},
		{workerv1.ResultStatus_RESULT_STATUS_REFUSED, `{"code":"busy","error":"64 at once"}`, "refused", "busy", "64 at once"},
		{workerv1.ResultStatus_RESULT_STATUS_FAILED, `{"code":"out_of_hay","error":"none"}`, "failed", "out_of_hay", "none"},
		{workerv1.ResultStatus_RESULT_STATUS_FAILED, `not json`, "failed", "failed", "the worker gave no reason"},
		{workerv1.ResultStatus_RESULT_STATUS_REFUSED, `{}`, "refused", "refused", "the worker gave no reason"},
	} {
		h.tamper = func(a *workerv1.Header, r *hostv1.SendResponse) {
			a.Status, r.Result.Payload = test.status, []byte(test.payload)
		}
		got, err := c.Send(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.echo"})
		var e *client.TaskError
		if !errors.As(err, &e) || e.Code != test.code || e.Message != test.message || got.Status != test.said || got.SignedBy == "" {
			t.Errorf("%s: %+v, %v", test.payload, got, err)
		}
		if !json.Valid([]byte(mustJSON(t, got))) {
			t.Errorf("%s breaks the document", test.payload)
		}
	}
}

// TestUncertain: which errors leave it open whether the envelope was admitted.
func TestUncertain(t *testing.T) {
	for code, want := range map[string]string{
		client.CodeUnavailable: client.StatusUnknown, client.CodeDeadline: client.StatusUnknown, client.CodeInternal: client.StatusUnknown,
		client.CodeCanceled: client.StatusUnknown, client.CodeCorrupt: client.StatusUnknown, // of the outcome, it may be
		client.CodeInvalid: "", client.CodeReplayed: "", client.CodeOverloaded: "", client.CodeWorkerUnavailable: "",
	} {
		c := start(t, &fakeHost{fail: coded(codes.Unknown, code, "")})
		got, err := c.Send(t.Context(), client.SendRequest{Worker: serial, Kind: "template.echo"})
		var e *client.Error
		if !errors.As(err, &e) || e.Code != code || got.Status != want || got.ID == "" {
			t.Errorf("%s: %+v, %v", code, got, err)
		}
	}
}

func TestSignThenSend(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	env, err := c.Sign(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.echo"})
	if err != nil || h.asked != nil {
		t.Fatalf("signing sent something or failed: %v", err)
	}
	if got, err := c.SendEnvelope(t.Context(), env, time.Second); err != nil || got.Status != client.StatusOK {
		t.Fatalf("%+v, %v", got, err)
	}
	env.Payload = []byte("[]")
	if _, err := c.SendEnvelope(t.Context(), env, time.Second); err == nil {
		t.Fatal("a tampered envelope was answered")
	}
	if _, err := c.SendEnvelope(t.Context(), &workerv1.Envelope{}, 0); err == nil {
		t.Fatal("an empty envelope was answered")
	}
}

func TestContextEnds(t *testing.T) {
	c := start(t, &fakeHost{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	got, err := c.Send(ctx, client.SendRequest{Worker: serial, Kind: "template.hang"})
	if !errors.Is(err, context.DeadlineExceeded) || got.ID == "" || got.Status != client.StatusUnknown || !strings.Contains(err.Error(), "vault prove "+got.ID) {
		t.Errorf("after the deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := c.Types(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	if _, err := c.Types(late{t.Context()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a timer that is late: %v", err)
	}
}

// late is a context whose deadline has passed, which it has not noticed yet.
type late struct{ context.Context }

func (late) Deadline() (time.Time, bool) { return time.Now().Add(-time.Millisecond), true }

func TestForge(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	made, err := c.Forge(t.Context(), client.ForgeRequest{
		Name: "nora", Type: "template", ClassCode: "A1", Config: map[string]int{"size": 3}, Timeout: 1500 * time.Microsecond, PlanHash: "ee",
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(h.forged.GetConfig()) != `{"size":3}` || h.forged.GetTimeoutMs() != 2 || h.forged.GetPlanHash() != "ee" {
		t.Errorf("asked for %v", h.forged)
	}
	want := fmt.Sprintf(`{"worker_name":"nora","worker_type":"template","type_version":"1.0.0","class_code":"A1",`+
		`"worker_serial":%q,"model_number":"DMN-TP-1","ledger_code":"A1-000001","port":20001,"state":"live","launcher":"process",`+
		`"public_key":%q,"glyph":"+--+","manifest_sha256":"ab","image_digest":"","vault_integrity":true,`+
		`"heartbeat":{"last":"2026-01-02T03:04:05.678Z","interval_s":5,"missed":0},"created_at":"2026-01-02T03:04:05Z"}`,
		serial, base64.StdEncoding.EncodeToString(public(h.key)))
	if got := mustJSON(t, made); got != want {
		t.Errorf("worker object\n%s\nwant\n%s", got, want)
	}
	dry, err := c.Forge(t.Context(), client.ForgeRequest{Name: "nora", Type: "template", ClassCode: "A1", DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, tail := mustJSON(t, dry), `,"dry_run":true,"plan_hash":"ff","plan":[{"step":"open stage","makes":"a folder"}],`+
		`"files":[{"path":"run/","mode":"0700"},{"path":"config.json","mode":"0440","size":2,"sha256":"ab"}],"manifest":{"format":1}}`; !strings.HasSuffix(got, tail) {
		t.Errorf("dry run %s", got)
	}
	if _, err := c.Forge(t.Context(), client.ForgeRequest{Config: make(chan int)}); err == nil {
		t.Error("a channel was taken for a config")
	}
}

func TestType(t *testing.T) {
	c := start(t, &fakeHost{})
	got, err := c.Type(t.Context(), "template")
	if err != nil || got.Version != "1.10.0" {
		t.Errorf("Type: %+v, %v", got, err)
	}
	_, err = c.Type(t.Context(), "xyz")
	var e *client.Error
	if !errors.As(err, &e) || e.Message != "worker type 'xyz' is not registered" || e.Hint != "registered are: ledger, template" {
		t.Errorf("unknown: %v", err)
	}
	types, err := c.Types(t.Context())
	if err != nil || len(types) != 4 {
		t.Fatalf("Types: %v, %v", types, err)
	}
	want := `{"name":"template","version":"1.9.0","digest":"","family":"TP","summary":"","tasks":[{"kind":"template.echo","summary":"",` +
		`"input_schema":{"type":"object"},"output_schema":null}],"capabilities":[],"workers":0}`
	if got := mustJSON(t, types[0]); got != want {
		t.Errorf("type %s, want %s", got, want)
	}
	plugins, err := c.Plugins(t.Context())
	if err != nil || mustJSON(t, plugins) != "[]" {
		t.Errorf("no plugins: %v, %v", plugins, err)
	}
}

func TestWorkers(t *testing.T) {
	c := start(t, &fakeHost{})
	workers, err := c.Workers(t.Context(), client.WorkerFilter{})
	if err != nil || len(workers) != 1 || workers[0].WorkerName != "nora" {
		t.Fatalf("%v, %v", workers, err)
	}
	one, err := c.Worker(t.Context(), "nora")
	if err != nil || one.WorkerSerial != serial || string(one.Identity) != `{"a":1}` || one.Manifest != nil {
		t.Fatalf("%+v, %v", one, err)
	}
	var back client.WorkerDetail
	if err := json.Unmarshal([]byte(mustJSON(t, one)), &back); err != nil || !reflect.DeepEqual(back.Worker, one.Worker) {
		t.Fatalf("back from JSON: %+v, %v", back, err)
	}
	never := client.WorkerFromProto(&hostv1.Worker{})
	if got := mustJSON(t, never); !strings.Contains(got, `"heartbeat":{"last":null,"interval_s":0,"missed":0},"created_at":null}`) {
		t.Errorf("a worker without times: %s", got)
	}
}

func TestLogs(t *testing.T) {
	h := &fakeHost{}
	c := start(t, h)
	var lines []string
	for line, err := range c.Logs(t.Context(), client.LogsRequest{Worker: "nora"}) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if got := strings.Join(lines, " "); got != "a b c" {
		t.Fatalf("lines %s", got)
	}
	for line, err := range c.Logs(t.Context(), client.LogsRequest{Worker: "nora", Follow: true}) {
		if line != "a" || err != nil {
			t.Errorf("first line %q, %v", line, err)
		}
		break // ends the stream too: goleak would tell
	}
	h.fail = status.Error(codes.Internal, "disk gone")
	var last error
	for _, err := range c.Logs(t.Context(), client.LogsRequest{Worker: "nora"}) {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), "disk gone") {
		t.Fatalf("the error was lost: %v", last)
	}
}

func TestStatusOfUnknownCall(t *testing.T) {
	c := start(t, &fakeHost{})
	var e *client.Error
	if _, err := c.Down(t.Context(), time.Second); !errors.As(err, &e) || e.Code != client.CodeInternal || status.Code(err) != codes.Unimplemented {
		t.Fatalf("%v", err)
	}
}
