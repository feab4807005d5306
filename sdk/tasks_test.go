package sdk_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/sdk"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/workertest"
)

func TestTasks(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	quote := strings.Count(`{"text":""}`, "") - 1
	for _, c := range []struct {
		kind string
		in   string
		want string
	}{
		{"probe.echo", `{"text":"hi"}`, `{"text":"hi"}`},
		{"probe.echo", `{"text":1}`, `REFUSED schema_mismatch`},
		{"probe.echo", `{}`, `REFUSED schema_mismatch`},
		{"probe.echo", `no JSON`, `REFUSED schema_mismatch`},
		{"probe.echo", `{"text":"hi"} {}`, `REFUSED schema_mismatch`},
		{"probe.big", `{"bytes":1e300}`, `REFUSED schema_mismatch`},
		{"probe.fail", `{"text":"out of hay"}`, `FAILED failed: out of hay`},
		{"probe.fail", fmt.Sprintf(`{"text":%q}`, strings.Repeat("é", 4096)), `FAILED failed: éé`},
		{"probe.panic", `{"text":"secret"}`, `FAILED panicked`},
		{"probe.exit", `{}`, `FAILED panicked`},
		{"probe.big", fmt.Sprintf(`{"bytes":%d}`, envelope.MaxPayload-quote), `{"text":"xx`},
		{"probe.big", fmt.Sprintf(`{"bytes":%d}`, envelope.MaxPayload-quote+1), `FAILED result_too_large`},
		{"probe.raw", `"any"`, `"any"`},
		{"probe.raw", `7`, `REFUSED schema_mismatch`},
		{"probe.broken", `[1]`, `FAILED failed: check output`},
		{"probe.color", `{}`, `{"color":"red"}`},
		{"probe.nothing", `{}`, `REFUSED kind_unknown`},
	} {
		a := w.Send(t.Context(), c.kind, json.RawMessage(c.in))
		got := strings.TrimPrefix(a.String(), "RESULT_STATUS_")
		if !strings.HasPrefix(got, c.want) || len(a.Error) > 5000 {
			t.Errorf("%s %.40s: %.200s, want %s", c.kind, c.in, got, c.want)
		}
	}
	if h := w.Heartbeat(t.Context()); h.GetTasksDone() != 4 || h.GetTasksFailed() != 6 || h.GetTasksInFlight() != 0 || h.GetRssBytes() == 0 {
		t.Errorf("heartbeat: %v", h)
	}
}

func TestPanicIsLoggedAndNotTold(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	a := w.Send(t.Context(), "probe.panic", text{Text: "the secret"})
	if a.Code != "panicked" || strings.Contains(a.Error, "secret") || strings.Contains(a.Error, ".go") {
		t.Errorf("answer: %s", a)
	}
	if log := w.Log(); !strings.Contains(log, "the secret") || !strings.Contains(log, "main_test.go") {
		t.Errorf("log: %s", log)
	}
	if a := w.Send(t.Context(), "probe.echo", text{Text: "still here"}); !a.OK() {
		t.Errorf("after a panic: %s", a)
	}
}

func TestCallTellsOnWhoseBehalf(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	e := w.Envelope("probe.call", nothing{})
	h, err := envelope.Parse(e)
	must(t, err)
	a, err := w.Deliver(t.Context(), w.Stamp(e, func(s *workerv1.Stamp) { s.Attempt, s.LogIndex = 3, 77 }))
	must(t, err)
	var got sdk.CallInfo
	must(t, json.Unmarshal(a.Output, &got))
	want := sdk.CallInfo{EnvelopeID: h.Id, Sender: h.Sender, Kind: "probe.call", Attempt: 3, LogIndex: 77, Glyph: h.Glyph}
	if got != want {
		t.Errorf("call %+v, want %+v", got, want)
	}
	if a.Header.Glyph != h.Glyph || a.Header.Recipient != h.Sender || a.Header.Kind != h.Kind {
		t.Errorf("result header %v", a.Header)
	}
}

// TestHangPastTheDeadline: a task that ignores its deadline has its slot and its
// say; its late answer is a result like any other.
func TestHangPastTheDeadline(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	e := mustOpen(t, w)
	var deadline time.Time
	d := w.Stamp(w.Envelope("probe.hold", text{Text: "late"}), func(s *workerv1.Stamp) {
		s.DeadlineUnixMs = s.AdmittedAtUnixMs + 6000 // by then it runs
		deadline = time.UnixMilli(s.DeadlineUnixMs)
	})
	must(t, e.Deliver(d))
	<-p.holding
	eventually(t, "past the deadline", func() bool { return time.Now().After(deadline.Add(100 * time.Millisecond)) })
	e.Close() // the host has gone
	again := mustOpen(t, w)
	if flight := again.Hello.GetInFlight(); len(flight) != 1 || flight[0].String() != workertest.AttemptOf(d).String() {
		t.Errorf("hello: %v", again.Hello)
	}
	if h := w.Heartbeat(t.Context()); h.GetTasksInFlight() != 1 || !h.GetVaultIntegrity() {
		t.Errorf("heartbeat while one hangs: %v", h)
	}
	p.releaseAll()
	if a := mustResult(t, again); a.String() != `{"text":"late"}` {
		t.Errorf("late answer: %s", a)
	}
}

func TestDeadlineAndCancelReachTheTask(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	e := mustOpen(t, w)
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.wait", nothing{}), func(s *workerv1.Stamp) {
		s.DeadlineUnixMs = s.AdmittedAtUnixMs + 6000 // by then it runs
	})))
	if a := mustResult(t, e); a.Code != "deadline_exceeded" {
		t.Errorf("past the deadline: %s", a)
	}
	<-p.holding
	d := w.Stamp(w.Envelope("probe.wait", nothing{}))
	must(t, e.Deliver(d))
	<-p.holding
	must(t, e.Cancel(workertest.AttemptOf(d)))
	if a := mustResult(t, e); a.Code != "cancelled" {
		t.Errorf("cancelled: %s", a)
	}
	must(t, e.Cancel(workertest.AttemptOf(d))) // no longer there: no harm
	must(t, e.Cancel(nil))
}

// fill has w hold as many tasks as it does at once.
func (p *probe) fill(t *testing.T, w *workertest.Worker, e *workertest.Exchange) {
	t.Helper()
	for range 64 {
		must(t, e.Deliver(w.Stamp(w.Envelope("probe.hold", text{}))))
		<-p.holding
	}
}

// TestQueue: what a worker does not do at once waits for its turn, up to what a
// host lets a worker owe; only beyond it is busy.
func TestQueue(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	e := mustOpen(t, w)
	p.fill(t, w, e)
	for range 256 - 64 {
		must(t, e.Deliver(w.Stamp(w.Envelope("probe.hold", text{}))))
	}
	over := w.Envelope("probe.echo", text{})
	must(t, e.Deliver(w.Stamp(over)))
	if a := mustResult(t, e); a.Code != "busy" {
		t.Errorf("the 257th: %s", a)
	}
	if h := w.Heartbeat(t.Context()); h.GetTasksInFlight() != 256 || len(p.holding) != 0 {
		t.Errorf("%d in flight, %d more than 64 run", h.GetTasksInFlight(), len(p.holding))
	}
	again := mustOpen(t, w)
	if n := len(again.Hello.GetInFlight()); n != 256 {
		t.Errorf("hello names %d in flight", n)
	}
	p.releaseAll()
	for range 256 {
		if a := mustResult(t, again); !a.OK() {
			t.Errorf("one of 256: %s", a)
		}
	}
	must(t, again.Deliver(w.Stamp(over))) // busy spends no attempt
	if a := mustResult(t, again); !a.OK() {
		t.Errorf("the 257th, later: %s", a)
	}
}

// TestQueuedTooLong: what waits is answered at its deadline or when it is
// cancelled, while others still run, and is not run any more.
func TestQueuedTooLong(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	e := mustOpen(t, w)
	p.fill(t, w, e)
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.hold", text{}), func(s *workerv1.Stamp) {
		s.DeadlineUnixMs = s.AdmittedAtUnixMs + 700
	})))
	if a := mustResult(t, e); a.Status != workerv1.ResultStatus_RESULT_STATUS_REFUSED || a.Code != "expired" {
		t.Errorf("past its deadline: %s", a)
	}
	unwanted := w.Stamp(w.Envelope("probe.hold", text{}))
	must(t, e.Deliver(unwanted))
	must(t, e.Cancel(workertest.AttemptOf(unwanted)))
	if a := mustResult(t, e); a.Code != "cancelled" {
		t.Errorf("cancelled: %s", a)
	}
	p.releaseAll()
	for range 64 {
		if a := mustResult(t, e); !a.OK() {
			t.Errorf("one of 64: %s", a)
		}
	}
	if len(p.holding) != 0 {
		t.Error("a task that was answered has run")
	}
}

// TestSilentHost delivers much and reads nothing: tasks end all the same, and
// the results are there for the next host.
func TestSilentHost(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	silent := mustOpen(t, w)
	const tasks = 10
	for range tasks {
		must(t, silent.Deliver(w.Stamp(w.Envelope("probe.big", size{Bytes: 3 << 20}))))
	}
	eventually(t, "all tasks done", func() bool { return w.Heartbeat(t.Context()).GetTasksDone() == tasks })
	next := mustOpen(t, w)
	if len(next.Hello.GetKept()) != tasks {
		t.Errorf("%d results kept, want %d", len(next.Hello.GetKept()), tasks)
	}
	for range tasks {
		if a := mustResult(t, next); !a.OK() {
			t.Error(a.Code)
		}
	}
}

func TestStdoutIsTheLog(t *testing.T) {
	t.Parallel()
	w := workertest.StartBinary(t, os.Args[0])
	if a := w.Send(t.Context(), "probe.print", text{Text: "printed by a library"}); !a.OK() {
		t.Fatal(a)
	}
	eventually(t, "the print is in the log", func() bool { return strings.Contains(w.Log(), "printed by a library\n") })
	info, err := os.Lstat(filepath.Join(w.Dir, "run", "worker.sock"))
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
}

func TestEndLetsTasksFinish(t *testing.T) {
	t.Parallel()
	w := workertest.NewBinary(t, os.Args[0])
	must(t, os.WriteFile(filepath.Join(w.Dir, patientFile), nil, 0o600))
	w.Start()
	e := mustOpen(t, w)
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.await", nothing{}))))
	eventually(t, "in flight", func() bool { return w.Heartbeat(t.Context()).GetTasksInFlight() == 1 })
	ended := make(chan error, 1)
	go func() { ended <- w.Stop() }()
	eventually(t, "nothing more is let in", func() bool {
		must(t, e.Deliver(w.Stamp(w.Envelope("probe.echo", text{}))))
		return mustResult(t, e).Code == "busy"
	})
	must(t, os.WriteFile(filepath.Join(w.Dir, "state", "go"), nil, 0o600))
	if a := mustResult(t, e); a.String() != `{"text":"went"}` {
		t.Errorf("result of a task in flight: %s", a)
	}
	must(t, <-ended)
	if _, err := os.Lstat(filepath.Join(w.Dir, "run", "worker.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestEndDoesNotWaitForever: a task that heeds its context is cancelled, one
// that does not is left; the worker ends, and keeps what it has.
func TestEndDoesNotWaitForever(t *testing.T) {
	t.Parallel()
	w := workertest.NewBinary(t, os.Args[0])
	must(t, os.WriteFile(filepath.Join(w.Dir, tightFile), nil, 0o600))
	w.Start()
	e := mustOpen(t, w)
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.hold", text{}))))
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.wait", nothing{}))))
	eventually(t, "in flight", func() bool { return w.Heartbeat(t.Context()).GetTasksInFlight() == 2 })
	e.Close()
	started := time.Now()
	must(t, w.Stop())
	if took := time.Since(started); took < sdk.TightGrace || took > 30*time.Second {
		t.Errorf("took %s", took)
	}
	w.Start()
	again := mustOpen(t, w)
	if len(again.Hello.GetKept()) != 1 || len(again.Hello.GetInFlight()) != 0 {
		t.Fatalf("hello: %v", again.Hello)
	}
	if a := mustResult(t, again); a.Code != "cancelled" {
		t.Errorf("what was cancelled: %s", a)
	}
}
