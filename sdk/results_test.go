package sdk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/workertest"
)

func resultFiles(t *testing.T, w *workertest.Worker) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.Dir, "state", "results"))
	must(t, err)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// TestKeptResult: a result outlives the stream and the process, each new
// Exchange is offered it once, and the receipt ends it.
func TestKeptResult(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	e := mustOpen(t, w)
	d := w.Stamp(w.Envelope("probe.echo", text{Text: "keep me"}))
	must(t, e.Deliver(d))
	first := mustResult(t, e)
	e.Close()

	name := fmt.Sprintf("%s.1", workertest.AttemptOf(d).GetEnvelopeId())
	if files := resultFiles(t, w); len(files) != 1 || files[0] != name {
		t.Fatalf("files %v, want %s", files, name)
	}
	for range 2 {
		must(t, w.Stop())
		w.Start()
		again := mustOpen(t, w)
		if len(again.Hello.GetKept()) != 1 || len(again.Hello.GetInFlight()) != 0 {
			t.Fatalf("hello: %v", again.Hello)
		}
		if second := mustResult(t, again); second.Header.Id != first.Header.Id || second.String() != first.String() {
			t.Errorf("offered %s, was %s", second, first)
		}
		// Once: what comes next is the answer to the next task.
		next := w.Stamp(w.Envelope("probe.echo", text{Text: "next"}))
		must(t, again.Deliver(next))
		if a := mustResult(t, again); a.String() != `{"text":"next"}` {
			t.Errorf("then came %s", a)
		}
		must(t, again.Receipt(workertest.AttemptOf(next)))
		eventually(t, "one file is left", func() bool { return len(resultFiles(t, w)) == 1 })
		must(t, again.Receipt(&workerv1.Attempt{EnvelopeId: "../../identity.json", Attempt: 1})) // no harm
	}
	last := mustOpen(t, w)
	must(t, last.Receipt(workertest.AttemptOf(d)))
	eventually(t, "the file is gone", func() bool { return len(resultFiles(t, w)) == 0 })
	if again := mustOpen(t, w); len(again.Hello.GetKept()) != 0 {
		t.Errorf("after the receipt: %v", again.Hello)
	}
}

func TestNewExchangeReplacesTheOld(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	old := mustOpen(t, w)
	must(t, old.Deliver(w.Stamp(w.Envelope("probe.hold", text{Text: "mine"}))))
	<-p.holding
	latest := mustOpen(t, w)
	if _, err := old.Result(); status.Code(err) != codes.Aborted {
		t.Errorf("the old exchange: %v", err)
	}
	p.releaseAll()
	if a := mustResult(t, latest); a.String() != `{"text":"mine"}` {
		t.Errorf("the new exchange: %s", a)
	}
}

// TestBoundedStore: what a host never takes is bounded, in number and in bytes.
// What earlier processes kept beyond it goes, the oldest first, not unseen; and
// no more is taken on, or begun, until there is room.
func TestBoundedStore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ fit, bytes int }{
		"number": {32, 10},
		"bytes":  {16, 261_000},
	} {
		p := newProbe()
		p.tight = true
		w := workertest.New(t, p.typ)
		for i := range c.fit + 1 {
			keepResult(t, w, i, c.bytes)
		}
		w.Start()
		e := mustOpen(t, w)
		kept := e.Hello.GetKept()
		if len(kept) != c.fit || kept[0].GetEnvelopeId() != numberedID(1) {
			t.Fatalf("%s: %d kept, the oldest %v", name, len(kept), kept[0])
		}
		if files := resultFiles(t, w); len(files) != c.fit || files[0] != numberedID(1)+".1" {
			t.Errorf("%s: %d files, first %s", name, len(files), files[0])
		}
		if n := strings.Count(w.Log(), "dropped the oldest result"); n != 1 {
			t.Errorf("%s: %d drops logged, want 1", name, n)
		}
		for range kept {
			if a := mustResult(t, e); !a.OK() {
				t.Errorf("%s: kept: %s", name, a)
			}
		}
		// The first result of its own fits where bytes are bounded.
		for i, want := range map[string][]string{"number": {"busy", ""}, "bytes": {"", "expired", ""}}[name] {
			if i > 0 && want == "" {
				must(t, e.Receipt(kept[0]))
				must(t, e.Receipt(kept[1]))
			}
			d := w.Stamp(w.Envelope("probe.big", size{Bytes: c.bytes}), func(s *workerv1.Stamp) {
				if want == "expired" { // it waits, as nothing is receipted
					s.DeadlineUnixMs = s.AdmittedAtUnixMs + 500
				}
			})
			must(t, e.Deliver(d))
			if a := mustResult(t, e); a.Code != want {
				t.Errorf("%s: delivery %d: %.100s, want %q", name, i, a, want)
			}
		}
	}
}

// TestManyLargeResults: whatever many large answers weigh together, each is given
// to a host that takes them in.
func TestManyLargeResults(t *testing.T) {
	t.Parallel()
	p := newProbe()
	p.tight = true
	w := p.start(t)
	e := mustOpen(t, w)
	const tasks = 31
	open := map[string]bool{}
	for range tasks {
		d := w.Stamp(w.Envelope("probe.big", size{Bytes: 300_000})) // 9 MB in all
		open[workertest.AttemptOf(d).GetEnvelopeId()] = true
		must(t, e.Deliver(d)) // nothing is read, or receipted, meanwhile
	}
	for range tasks {
		a := mustResult(t, e)
		if !a.OK() {
			t.Errorf("answer to %v: %.100s", a.Attempt, a)
		}
		delete(open, a.Attempt.GetEnvelopeId())
		must(t, e.Receipt(a.Attempt))
	}
	if len(open) != 0 {
		t.Errorf("%d are not answered", len(open))
	}
	eventually(t, "nothing is kept", func() bool { return len(resultFiles(t, w)) == 0 })
}

// TestResultThatIsGone: the sender of a task whose kept result has been taken
// away is told so.
func TestResultThatIsGone(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	e := mustOpen(t, w)
	d := w.Stamp(w.Envelope("probe.echo", text{Text: "gone"}))
	must(t, e.Deliver(d))
	first := mustResult(t, e)
	must(t, os.Remove(filepath.Join(w.Dir, "state", "results", workertest.AttemptOf(d).GetEnvelopeId()+".1")))
	must(t, e.Deliver(d)) // it is offered again, as nothing is receipted
	a := mustResult(t, e)
	if a.Status != workerv1.ResultStatus_RESULT_STATUS_FAILED || a.Code != "result_dropped" {
		t.Errorf("answer: %s", a)
	}
	if !proto.Equal(a.Attempt, workertest.AttemptOf(d)) || a.Header.Recipient != first.Header.Recipient || a.Header.Kind != first.Header.Kind {
		t.Errorf("header %v, was %v", a.Header, first.Header)
	}
}

func numberedID(n int) string { return fmt.Sprintf("0198c0de-0000-7000-8000-%012x", n) }

// keepResult leaves a result as an earlier process of w would have, n minutes
// after the first.
func keepResult(t *testing.T, w *workertest.Worker, n, bytes int) {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(w.Dir, "certs", "worker.key"))
	must(t, err)
	key, err := identity.ParseKey(pem)
	must(t, err)
	e, err := envelope.New(key, w.Identity.WorkerSerial, &workerv1.Header{
		Recipient: w.Identity.WorkerSerial, Kind: "probe.big", InReplyTo: numberedID(n), Attempt: 1,
		Status: workerv1.ResultStatus_RESULT_STATUS_OK,
	}, make([]byte, bytes))
	must(t, err)
	data, err := proto.Marshal(e)
	must(t, err)
	dir := filepath.Join(w.Dir, "state", "results")
	must(t, os.MkdirAll(dir, 0o700))
	path := filepath.Join(dir, numberedID(n)+".1")
	must(t, os.WriteFile(path, data, 0o600))
	at := time.Now().Add(time.Duration(n)*time.Minute - 24*time.Hour)
	must(t, os.Chtimes(path, at, at))
}

// TestGarbageAmongResults: a file that looks like a result of this worker and is
// none is removed, what does not is left alone, both are logged.
func TestGarbageAmongResults(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := workertest.New(t, p.typ)
	dir := filepath.Join(w.Dir, "state", "results")
	must(t, os.Mkdir(dir, 0o700))
	id := "0198c0de-0000-7000-8000-00000000000"
	forged, err := envelope.New(newKey(t), w.Identity.WorkerSerial, &workerv1.Header{
		Recipient: w.Identity.WorkerSerial, Kind: "probe.echo", InReplyTo: id + "1", Attempt: 1,
		Status: workerv1.ResultStatus_RESULT_STATUS_OK,
	}, []byte(`{"text":"not mine"}`))
	must(t, err)
	foreign, err := proto.Marshal(forged)
	must(t, err)
	for name, data := range map[string][]byte{
		"notes.txt": []byte("hello"), id + "1.1": foreign, id + "2.1": {}, id + "3.1": []byte("\xff\xff"),
		id + "4.01": foreign, id + "5.99999999999": foreign, id + "6": foreign, id + "7.1.1": foreign,
		id + "b.1.new": foreign, id + "c.01.new": foreign,
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, id+"8.1")))
	must(t, os.Mkdir(filepath.Join(dir, id+"9.1"), 0o700))
	huge, err := os.Create(filepath.Join(dir, id+"a.1"))
	must(t, err)
	must(t, huge.Truncate(1<<40))
	must(t, huge.Close())

	want := []string{id + "4.01", id + "5.99999999999", id + "6", id + "7.1.1", id + "8.1", id + "9.1", id + "c.01.new", "notes.txt"}
	w.Start()
	e := mustOpen(t, w)
	if len(e.Hello.GetKept()) != 0 {
		t.Errorf("hello: %v", e.Hello)
	}
	if after := resultFiles(t, w); !slices.Equal(after, want) {
		t.Errorf("files %v, want %v", after, want)
	}
	for message, want := range map[string]int{"ignored a file among the results": len(want), "removed a file that is no result": 5} {
		if n := strings.Count(w.Log(), message); n != want {
			t.Errorf("%q logged %d times, want %d", message, n, want)
		}
	}
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.echo", text{Text: "fine"}))))
	if a := mustResult(t, e); !a.OK() {
		t.Error(a)
	}
}

// TestNoRoomForResults: a result that cannot be kept is offered all the same.
func TestNoRoomForResults(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	dir := filepath.Join(w.Dir, "state", "results")
	must(t, os.Remove(dir))
	must(t, os.WriteFile(dir, nil, 0o600)) // in the way
	e := mustOpen(t, w)
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.echo", text{Text: "unkept"}))))
	if a := mustResult(t, e); a.String() != `{"text":"unkept"}` {
		t.Error(a)
	}
	if !strings.Contains(w.Log(), "could not keep a result") {
		t.Errorf("log: %s", w.Log())
	}
}
