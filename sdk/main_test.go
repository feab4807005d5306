package sdk_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/sdk"
	"github.com/dals-host/dals-host/sdk/wire"
	"github.com/dals-host/dals-host/sdk/workertest"
)

// handEnv makes the test binary a plugin that is run by hand.
const handEnv = "SDK_TEST_BY_HAND"

// tightFile in a worker's folder gives its process less time and room than usual.
const tightFile = "state/tight"

// patientFile gives it more time to end.
const patientFile = "state/patient"

func TestMain(m *testing.M) {
	switch os.Getenv(handEnv) {
	case "good":
		sdk.Serve(newProbe().typ())
	case "bad":
		sdk.Serve(sdk.Type{Name: "Bad Name"})
	}
	workertest.Main(func() sdk.Type {
		p := newProbe()
		_, err := os.Stat(filepath.Join(os.Getenv(wire.WorkerDirEnv), tightFile))
		p.tight = err == nil
		_, err = os.Stat(filepath.Join(os.Getenv(wire.WorkerDirEnv), patientFile))
		p.patient = err == nil
		return p.typ()
	}, func() { goleak.VerifyTestMain(m) })
}

// probe is a type whose tasks misbehave on demand. Tasks of kind probe.hold stay
// until release is closed, whatever their context says.
type probe struct {
	config  *probeConfig
	release chan struct{}
	holding chan struct{} // gets one value for each task that holds
	opened  *sdk.Worker
	openErr error
	mayOpen chan struct{} // it opens when that is closed; at once where it is nil
	closed  chan struct{}
	tight   bool // less time and room than usual
	patient bool // more time to end than usual

	closeErr error
}

type probeConfig struct {
	Color string `json:"color"`
	Size  int    `json:"size,omitempty"`
}

func newProbe() *probe {
	return &probe{
		config:  &probeConfig{Color: "red"},
		release: make(chan struct{}),
		holding: make(chan struct{}, 1000),
		closed:  make(chan struct{}, 10),
	}
}

type text struct {
	Text string `json:"text"`
}

type size struct {
	Bytes int `json:"bytes"`
}

type nothing struct{}

func (p *probe) typ() sdk.Type {
	t := sdk.Type{
		Name: "probe", Version: "2.1.0", Family: "PB", Summary: "Misbehaves on demand.",
		Config: p.config,
		Tasks: []sdk.Task{
			sdk.Func("probe.echo", "Echo.", func(_ context.Context, in text) (text, error) { return in, nil }),
			sdk.Func("probe.panic", "Panic.", func(_ context.Context, in text) (text, error) { panic(in.Text) }),
			sdk.Func("probe.exit", "End the goroutine.", func(context.Context, nothing) (text, error) { runtime.Goexit(); return text{}, nil }),
			sdk.Func("probe.fail", "Fail.", func(_ context.Context, in text) (text, error) { return text{}, errors.New(in.Text) }),
			sdk.Func("probe.big", "Answer with much.", func(_ context.Context, in size) (text, error) {
				return text{Text: strings.Repeat("x", in.Bytes)}, nil
			}),
			sdk.Func("probe.fill", "Use much memory, until the state has a file named go; it has one named full then.", func(ctx context.Context, in size) (size, error) {
				much := bytes.Repeat([]byte("x"), in.Bytes)
				err := os.WriteFile(filepath.Join(sdk.FromContext(ctx).StateDir(), "full"), nil, 0o600)
				err = errors.Join(err, awaitGo(ctx))
				return size{Bytes: len(much)}, err
			}),
			sdk.Func("probe.later", "Use much memory after the answer, once the state has a file named go; it has one named full then, until go is gone.", func(ctx context.Context, in size) (size, error) {
				state := sdk.FromContext(ctx).StateDir()
				go spendLater(state, in.Bytes)
				return in, nil
			}),
			sdk.Func("probe.hold", "Stay until released, whatever the context says.", p.hold),
			sdk.Func("probe.wait", "Stay until the context ends.", func(ctx context.Context, _ nothing) (text, error) {
				p.holding <- struct{}{}
				<-ctx.Done()
				return text{}, fmt.Errorf("waited: %w", ctx.Err())
			}),
			sdk.Func("probe.print", "Print to stdout.", func(_ context.Context, in text) (text, error) {
				fmt.Println(in.Text)
				return in, nil
			}),
			sdk.Func("probe.call", "Tell about the call.", func(ctx context.Context, _ nothing) (sdk.CallInfo, error) {
				return sdk.Call(ctx), nil
			}),
			sdk.Func("probe.color", "Tell the configuration.", func(context.Context, nothing) (probeConfig, error) {
				return *p.config, nil
			}),
			sdk.Func("probe.await", "Stay until the state has a file named go.", func(ctx context.Context, _ nothing) (text, error) {
				return text{Text: "went"}, awaitGo(ctx)
			}),
		},
		Open: func(_ context.Context, w *sdk.Worker) error {
			if p.mayOpen != nil {
				<-p.mayOpen
			}
			p.opened = w
			return p.openErr
		},
		Close: func() error { p.closed <- struct{}{}; return p.closeErr },
	}
	t.Tasks = append(t.Tasks, sdk.Process(processor{},
		sdk.Kind{Kind: "probe.raw", Summary: "Answer with the payload.", Input: json.RawMessage(`{"type":["object","string"]}`)},
		sdk.Kind{Kind: "probe.broken", Summary: "Answer with what is no JSON."})...)
	if p.tight {
		return sdk.Tight(t)
	}
	if p.patient {
		return sdk.Patient(t)
	}
	return t
}

func awaitGo(ctx context.Context) error {
	goFile := filepath.Join(sdk.FromContext(ctx).StateDir(), "go")
	for _, err := os.Stat(goFile); err != nil && ctx.Err() == nil; _, err = os.Stat(goFile) {
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

func spendLater(state string, n int) {
	until := func(there bool) {
		for _, err := os.Stat(filepath.Join(state, "go")); (err == nil) != there; _, err = os.Stat(filepath.Join(state, "go")) {
			time.Sleep(5 * time.Millisecond)
		}
	}
	until(true)
	much := bytes.Repeat([]byte("x"), n)
	if err := os.WriteFile(filepath.Join(state, "full"), nil, 0o600); err != nil {
		panic(err)
	}
	until(false)
	runtime.KeepAlive(much)
}

func (p *probe) hold(_ context.Context, in text) (text, error) {
	p.holding <- struct{}{}
	<-p.release
	return in, nil
}

type processor struct{}

// ProcessTask answers kinds that are data.
func (processor) ProcessTask(_ context.Context, kind string, payload []byte) ([]byte, error) {
	if kind == "probe.broken" {
		return []byte("no JSON"), nil
	}
	return payload, nil
}

// start runs a worker of p's type, once, and lets what holds go at the end.
func (p *probe) start(t *testing.T, options ...workertest.Option) *workertest.Worker {
	t.Helper()
	w := workertest.Start(t, p.typ, options...)
	t.Cleanup(p.releaseAll)
	return w
}

func (p *probe) releaseAll() {
	select {
	case <-p.release:
	default:
		close(p.release)
	}
}

func mustOpen(t *testing.T, w *workertest.Worker) *workertest.Exchange {
	t.Helper()
	e, err := w.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustResult(t *testing.T, e *workertest.Exchange) workertest.Answer {
	t.Helper()
	a, err := e.Result()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until is holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}
