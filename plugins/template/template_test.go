package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/sdk/workertest"
)

// TestMain lets the test binary stand in for the plugin binary. Keep this.
func TestMain(m *testing.M) {
	workertest.Main(newType, func() { goleak.VerifyTestMain(m) })
}

// TestConformance checks what every type owes a host. Keep this.
func TestConformance(t *testing.T) { workertest.Conformance(t, os.Args[0], newType) }

// TestDescriptor keeps what senders rely on from changing unseen. Keep this, and
// write testdata/descriptor.json anew with UPDATE_GOLDEN=1 go test.
func TestDescriptor(t *testing.T) { workertest.Golden(t, newType) }

// The tests from here on are of this type's own tasks. Change them.

func TestEcho(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType)
	for _, text := range []string{"hello", "", "ünïcödé 🐐", "line\nbreak\x00", strings.Repeat("long ", 1000)} {
		a := w.Send(t.Context(), "template.echo", message{Message: text})
		var got message
		if err := json.Unmarshal(a.Output, &got); err != nil || got.Message != text {
			t.Errorf("echo %q: %s", text, a)
		}
	}
}

func TestEchoRefusesOtherInput(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType)
	for _, in := range []string{``, `null`, `[]`, `{}`, `{"message":1}`, `{"message":"a","more":true}`, `{"Message":"a"}`, `{"message":"a"`} {
		if a := w.Send(t.Context(), "template.echo", json.RawMessage(in)); a.Code != "schema_mismatch" {
			t.Errorf("echo %s: %s", in, a)
		}
	}
}

func TestSleep(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType)
	a := w.Send(t.Context(), "template.sleep", sleepInput{Milliseconds: 20})
	var got sleepOutput
	if err := json.Unmarshal(a.Output, &got); err != nil || got.SleptMS < 20 {
		t.Errorf("sleep: %s", a)
	}
	if a := w.Send(t.Context(), "template.sleep", sleepInput{Milliseconds: -1}); a.Code != "bad_duration" {
		t.Errorf("sleep -1 ms: %s", a)
	}
}

func TestSleepEndsWhenCancelled(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType)
	exchange, err := w.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := w.Stamp(w.Envelope("template.sleep", sleepInput{Milliseconds: 60_000}))
	if err := exchange.Deliver(d); err != nil {
		t.Fatal(err)
	}
	if err := exchange.Cancel(workertest.AttemptOf(d)); err != nil {
		t.Fatal(err)
	}
	if a, err := exchange.Result(); err != nil || a.Code != "cancelled" {
		t.Errorf("cancelled sleep: %s, %v", a, err)
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType)
	a := w.Send(t.Context(), "template.fail", message{Message: "out of hay"})
	if a.OK() || a.Code != "template_failed" || a.Error != "out of hay" {
		t.Errorf("fail: %s", a)
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	if got := askInfo(t, workertest.Start(t, newType)); got.Greeting != "hello" {
		t.Errorf("greeting %q, want the default", got.Greeting)
	}
	w := workertest.Start(t, newType, workertest.Config(config{Greeting: "good day"}))
	got := askInfo(t, w)
	want := info{
		WorkerName:   w.Identity.WorkerName,
		WorkerSerial: w.Identity.WorkerSerial,
		WorkerType:   "template",
		TypeVersion:  "1.0.0",
		ModelNumber:  "DMN-TP-1",
		PublicKey:    got.PublicKey,
		Glyph:        w.Identity.Glyph,
		Greeting:     "good day",
	}
	if got != want || got.PublicKey == "" {
		t.Errorf("info %+v, want %+v", got, want)
	}
}

func askInfo(t *testing.T, w *workertest.Worker) info {
	t.Helper()
	a := w.Send(t.Context(), "template.info", none{})
	var got info
	if err := json.Unmarshal(a.Output, &got); err != nil {
		t.Fatalf("info: %s", a)
	}
	return got
}

func TestBadConfigEndsTheWorker(t *testing.T) {
	t.Parallel()
	w := workertest.New(t, newType, workertest.Config(map[string]int{"greeting": 1}))
	if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("run with a bad config: %v", err)
	}
}
