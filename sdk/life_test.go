package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/sdk"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
	"github.com/dals-host/dals-host/sdk/workertest"
)

func TestConformance(t *testing.T) {
	workertest.Conformance(t, os.Args[0], func() sdk.Type { return newProbe().typ() })
}

func TestRunByHand(t *testing.T) {
	t.Parallel()
	for life, want := range map[string][]string{
		"good": {"probe 2.1.0: Misbehaves on demand.", "probe.echo", "drop this file into the plugins folder of a dals-host"},
		"bad":  {`worker type "Bad Name" cannot be served`, `name "Bad Name"`, `version ""`, `family ""`, "summary", "tasks: there are none"},
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{handEnv + "=" + life, "GORACE=atexit_sleep_ms=0"}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s: %v", life, err)
		}
		for _, text := range want {
			if !strings.Contains(string(out), text) {
				t.Errorf("%s: no %q in\n%s", life, text, out)
			}
		}
	}
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	stream, err := w.Client().Heartbeat(t.Context())
	must(t, err)
	first, err := stream.Recv() // at once, unasked
	must(t, err)
	if !first.GetVaultIntegrity() || first.GetVaultFault() != "" || first.GetSerial() != w.Identity.WorkerSerial {
		t.Errorf("first: %v", first)
	}
	last, asked := first.GetSequence(), time.Now()
	must(t, stream.Send(&workerv1.HeartbeatRequest{IntervalMs: 1}))
	eventually(t, "4 beats in a second", func() bool {
		started := time.Now()
		for range 4 {
			h, err := stream.Recv()
			must(t, err)
			if h.GetSequence() != last+1 || h.GetPong() != 0 || h.GetStartedAtUnixMs() != first.GetStartedAtUnixMs() {
				t.Errorf("beat %v after %d", h, last)
			}
			last = h.GetSequence()
		}
		const least = 50 * time.Millisecond
		beats := time.Duration(last - first.GetSequence() - 1) // one may have been due before
		if took := time.Since(asked); took < beats*least {
			t.Errorf("%d beats within %s", beats+1, took)
		}
		return time.Since(started) < time.Second
	})
	must(t, stream.Send(&workerv1.HeartbeatRequest{IntervalMs: 60_000}))
	started := time.Now()
	must(t, stream.Send(&workerv1.HeartbeatRequest{Ping: 42}))
	for pong := uint64(0); pong != 42; {
		h, err := stream.Recv()
		must(t, err)
		pong = h.GetPong()
	}
	if took := time.Since(started); took > 40*time.Second { // a beat would take a minute
		t.Errorf("the pong took %s", took)
	}
	must(t, stream.CloseSend())
	for err == nil {
		_, err = stream.Recv()
	}
}

// TestRest: what a task has used is the machine's again soon after.
func TestRest(t *testing.T) {
	t.Parallel()
	w := workertest.NewBinary(t, os.Args[0])
	must(t, os.WriteFile(filepath.Join(w.Dir, tightFile), nil, 0o600))
	w.Start()
	resident := func() uint64 { return w.Heartbeat(t.Context()).GetRssBytes() }
	e := mustOpen(t, w)
	goFile, full := filepath.Join(w.Dir, "state", "go"), filepath.Join(w.Dir, "state", "full")
	for range 2 { // it rests each time
		must(t, e.Deliver(w.Stamp(w.Envelope("probe.fill", size{Bytes: 64 << 20}))))
		eventually(t, "much is used", func() bool { return os.Remove(full) == nil })
		most := resident()
		must(t, os.WriteFile(goFile, nil, 0o600))
		if a := mustResult(t, e); a.String() != `{"bytes":67108864}` {
			t.Fatalf("result: %s", a)
		}
		must(t, os.Remove(goFile))
		// Seldom, because to ask takes memory as well.
		for end := time.Now().Add(time.Minute); resident() > most-48<<20; time.Sleep(500 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is not given back")
			}
		}
	}

	// What is used without a task is given back, too, however long it has rested.
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.later", size{Bytes: 64 << 20}))))
	mustResult(t, e)
	time.Sleep(2 * time.Second) // it rests every half of one, and has
	least := resident()
	must(t, os.WriteFile(goFile, nil, 0o600))
	eventually(t, "much is used", func() bool { return os.Remove(full) == nil })
	if now := resident(); now < least+48<<20 {
		t.Fatalf("%d bytes are used, %d were", now, least)
	}
	must(t, os.Remove(goFile))
	for end := time.Now().Add(time.Minute); resident() > least+16<<20; time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what is used without a task is not given back")
		}
	}
}

// TestStrangers: the socket answers nobody but the worker's own host.
func TestStrangers(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	other, err := identity.NewAuthority(w.Identity.HostID, newKey(t)) // the right name, another key
	must(t, err)
	foreign, err := other.HostTLS(w.Identity.WorkerSerial)
	must(t, err)
	foreign.InsecureSkipVerify, foreign.VerifyPeerCertificate = true, nil // it would talk to anybody
	nameless := foreign.Clone()
	nameless.GetClientCertificate, nameless.Certificates = nil, nil
	for name, creds := range map[string]credentials.TransportCredentials{
		"another host":      credentials.NewTLS(foreign),
		"no certificate":    credentials.NewTLS(nameless),
		"no tls":            insecure.NewCredentials(),
		"the worker itself": workerAsClient(t, w),
	} {
		conn, err := grpc.NewClient("passthrough:///worker", grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", w.Socket())
			}))
		must(t, err)
		stream, err := workerv1.NewWorkerServiceClient(conn).Heartbeat(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		must(t, conn.Close())
	}
	if h := w.Heartbeat(t.Context()); h.GetSerial() == "" {
		t.Error("the host itself got no answer")
	}
}

// workerAsClient presents a worker's certificate, which its own CA did issue.
func workerAsClient(t *testing.T, w *workertest.Worker) credentials.TransportCredentials {
	t.Helper()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(w.Dir, "certs", name))
		must(t, err)
		return data
	}
	config, err := identity.WorkerTLS(read("worker.pem"), read("worker.key"), read("ca.pem"), w.Identity.HostID)
	must(t, err)
	config.InsecureSkipVerify, config.VerifyPeerCertificate = true, nil
	return credentials.NewTLS(config)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t, workertest.Config(map[string]any{"size": 7}))
	if a := w.Send(t.Context(), "probe.color", nothing{}); a.String() != `{"color":"red","size":7}` {
		t.Errorf("over the defaults: %s", a)
	}
	for _, bad := range []any{map[string]any{"colour": "blue"}, map[string]any{"color": 1}, []int{1}, nil, map[string]any{"size": 1e300}} {
		w := workertest.New(t, newProbe().typ, workertest.Config(bad))
		if err := w.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "read config.json: ") {
			t.Errorf("config %v: %v", bad, err)
		}
	}
}

func TestOpenAndClose(t *testing.T) {
	t.Parallel()
	p := newProbe()
	p.openErr = errors.New("no hay")
	if err := workertest.New(t, p.typ).Run(t.Context()); err == nil || err.Error() != "open worker type: no hay" {
		t.Errorf("open that fails: %v", err)
	}
	p = newProbe()
	w := workertest.Start(t, p.typ)
	state, id := p.opened.StateDir(), p.opened.Identity()
	if id.WorkerSerial != w.Identity.WorkerSerial {
		t.Errorf("identity: %+v", id)
	}
	must(t, os.WriteFile(filepath.Join(state, "mine"), nil, 0o600))
	if _, err := os.Stat(filepath.Join(w.Dir, "state", "mine")); err != nil {
		t.Error(err)
	}
	p.closeErr = errors.New("still chewing")
	if err := w.Stop(); err == nil || err.Error() != "close worker type: still chewing" {
		t.Errorf("close that fails: %v", err)
	}
	<-p.closed
}

// TestLobby: while a type opens, its host gets a connection, and waits on it for the
// Hello.
func TestLobby(t *testing.T) {
	t.Parallel()
	p := newProbe()
	p.mayOpen = make(chan struct{})
	w := workertest.New(t, p.typ)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stream, err := w.Client().Exchange(ctx, grpc.WaitForReady(true))
	must(t, err)
	said := make(chan error, 1)
	go func() {
		first, err := stream.Recv()
		if err == nil && first.GetHello().GetSerial() != w.Identity.WorkerSerial {
			err = fmt.Errorf("it said %v", first)
		}
		said <- err
	}()
	select {
	case err := <-said:
		t.Errorf("it spoke before it was open: %v", err)
	case err := <-ended:
		t.Fatal(err)
	default:
	}
	close(p.mayOpen)
	must(t, <-said)
	cancel()
	must(t, <-ended)
	p = newProbe()
	p.mayOpen, p.openErr = make(chan struct{}), errors.New("no hay")
	w = workertest.New(t, p.typ)
	go func() { ended <- w.Run(t.Context()) }()
	stream, err = w.Client().Exchange(t.Context(), grpc.WaitForReady(true))
	must(t, err)
	close(p.mayOpen)
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
		t.Errorf("of a worker that does not open the host hears %v", err)
	}
	if err := <-ended; err == nil || err.Error() != "open worker type: no hay" {
		t.Errorf("it ended with %v", err)
	}
}

func TestFailedStartIsOneClearLine(t *testing.T) {
	t.Parallel()
	w := workertest.NewBinary(t, os.Args[0], workertest.Config(map[string]int{"color": 1}))
	var exit *exec.ExitError
	if err := w.Run(t.Context()); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit: %v", err)
	}
	if log := w.Log(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "read config.json") || !strings.Contains(log, `"@level":"error"`) {
		t.Errorf("log: %s", log)
	}
}

func TestStaleSocket(t *testing.T) {
	t.Parallel()
	w := workertest.StartBinary(t, os.Args[0])
	w.Kill()
	if _, err := os.Lstat(filepath.Join(w.Dir, wire.Socket)); err != nil {
		t.Fatalf("a killed worker leaves its socket: %v", err)
	}
	w.Start()
	if a := w.Send(t.Context(), "probe.echo", text{Text: "again"}); !a.OK() {
		t.Error(a)
	}
}

func TestWrongBinary(t *testing.T) {
	t.Parallel()
	w := workertest.New(t, newProbe().typ)
	other := sdk.Type{
		Name: "other", Version: "1.0.0", Family: "OT", Summary: "Another type.",
		Tasks: sdk.Process(processor{}, sdk.Kind{Kind: "other.raw", Summary: "Answer."}),
	}
	err := sdk.ServeWorker(t.Context(), other, w.Dir, hclog.NewNullLogger())
	if err == nil || !strings.Contains(err.Error(), "is of type probe, this binary is other") {
		t.Errorf("serve another type: %v", err)
	}
}

// TestFaultAtTheStart: a folder that was tampered with is told to the host, and
// nothing of it is used, until it is mended.
func TestFaultAtTheStart(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"config.json":               "config.json: sha256 changed",
		"vault/accountability.json": "vault/accountability.json: sha256 changed",
		"vault/reflection.json":     "vault/reflection.json: sha256 changed",
		"worker_manifest.json":      "worker_manifest.json: ",
		"worker_manifest.sig":       "worker_manifest.json: ",
		"extra.txt":                 "extra.txt: not in the manifest",
	} {
		p := newProbe()
		w := workertest.New(t, p.typ)
		path := filepath.Join(w.Dir, name)
		data, err := os.ReadFile(path)
		if name != "extra.txt" {
			must(t, err)
			must(t, os.Chmod(path, 0o640))
		}
		must(t, os.WriteFile(path, append(data, ' '), 0o440))
		must(t, os.Chmod(path, 0o440))
		w.Start()
		h := w.Heartbeat(t.Context())
		if h.GetVaultIntegrity() || !strings.Contains(h.GetVaultFault(), want) {
			t.Errorf("%s: heartbeat %v, want %q", name, h, want)
		}
		a := w.Send(t.Context(), "probe.echo", text{})
		if a.Status != workerv1.ResultStatus_RESULT_STATUS_REFUSED || a.Code != "vault_integrity" {
			t.Errorf("%s: %s", name, a)
		}
		if p.opened != nil {
			t.Errorf("%s: the type was opened", name)
		}
		must(t, w.Stop())
	}
}

func TestBrokenIdentityIsAnError(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"identity.json", "certs/worker.key", "certs/worker.pem", "certs/ca.pem"} {
		w := workertest.New(t, newProbe().typ)
		must(t, os.Remove(filepath.Join(w.Dir, name)))
		if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), filepath.Base(name)) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestNoteSigner(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	signer, err := p.opened.NoteSigner()
	must(t, err)
	signed, err := note.Sign(&note.Note{Text: "hello\n"}, signer)
	must(t, err)
	key, err := note.NewEd25519VerifierKey(w.Identity.WorkerSerial, w.Identity.PublicKey)
	must(t, err)
	verifier, err := note.NewVerifier(key)
	must(t, err)
	if _, err := note.Open(signed, note.VerifierList(verifier)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"dals.envelope.v1\x00hello", "tab\t\n", "\xff\n"} {
		if signature, err := signer.Sign([]byte(bad)); err == nil {
			t.Errorf("signed %q: %x", bad, signature)
		}
	}
}

// TestMendedWorkerStartsAgain: a worker that started with a fault, and so never
// opened its type, ends when the fault is gone, for its host to start it again.
func TestMendedWorkerStartsAgain(t *testing.T) {
	t.Parallel()
	p := newProbe()
	p.tight = true
	w := workertest.New(t, p.typ)
	extra := filepath.Join(w.Dir, "extra.txt")
	must(t, os.WriteFile(extra, nil, 0o440))
	w.Start()
	must(t, os.Remove(extra))
	stream, err := w.Client().Heartbeat(t.Context())
	must(t, err)
	must(t, stream.Send(&workerv1.HeartbeatRequest{IntervalMs: 50}))
	for err == nil { // each one asks; the files are looked at again in a while
		_, err = stream.Recv()
	}
	if err := w.Wait(); err == nil || !strings.Contains(err.Error(), "is mended") {
		t.Errorf("end: %v", err)
	}
	w.Start()
	if a := w.Send(t.Context(), "probe.echo", text{}); !a.OK() {
		t.Error(a)
	}
}
