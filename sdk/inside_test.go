package sdk

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestReplaysForgetWhatHasPassed and nothing else, however many there are.
func TestReplaysForgetWhatHasPassed(t *testing.T) {
	t.Parallel()
	r, start := newReplays(), time.Now()
	short, long := uuid.New(), uuid.New()
	claim := func(id uuid.UUID, until, now time.Time) *refusal { return r.claim(id, 1, until, now) }
	if claim(short, start.Add(time.Second), start) != nil || claim(long, start.Add(time.Hour), start) != nil {
		t.Fatal("refused at first sight")
	}
	for range 2 * sweepFrom {
		if refused := claim(uuid.New(), start.Add(time.Second), start); refused != nil {
			t.Fatal(refused)
		}
	}
	later := start.Add(time.Minute)
	if refused := claim(uuid.New(), later, later); refused != nil {
		t.Fatal(refused)
	}
	if len(r.last) != 2 {
		t.Errorf("%d are remembered, want 2", len(r.last))
	}
	if refused := claim(long, start.Add(time.Hour), later); refused == nil || refused.code != codeReplayed {
		t.Errorf("a replay in time: %v", refused)
	}
	r = newReplays()
	r.most = 2 * sweepFrom
	for i := range uint32(r.most) {
		r.last[uuid.UUID(binary.BigEndian.AppendUint32(make([]byte, 12), i))] = remembered{attempt: 1, until: later.Unix()}
	}
	if refused := claim(short, later, start); refused == nil || refused.code != codeBusy {
		t.Errorf("one too many: %v", refused)
	}
	if refused := claim(short, later.Add(time.Hour), later.Add(time.Minute)); refused != nil {
		t.Errorf("with room again: %v", refused)
	}
}

// TestIntegrityLooksAgain: a look that is old is renewed by who asks, without
// making him wait.
func TestIntegrityLooksAgain(t *testing.T) {
	t.Parallel()
	looks, answers := make(chan struct{}), make(chan error)
	i := &integrity{
		look:    func() error { looks <- struct{}{}; return <-answers },
		recheck: time.Hour,
		log:     hclog.NewNullLogger(),
		at:      time.Now(),
		mended:  make(chan struct{}),
	}
	age := func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.at = time.Now().Add(-i.recheck)
	}
	if i.current() != "" {
		t.Error("a fault out of nothing")
	}
	for _, step := range []struct{ before, after string }{{"", "config.json: gone"}, {"config.json: gone", ""}} {
		age()
		for range 3 { // one look for many who ask
			if got := i.current(); got != step.before {
				t.Errorf("while it looks: %q, want %q", got, step.before)
			}
		}
		<-looks
		var err error
		if step.after != "" {
			err = errors.New(step.after)
		}
		answers <- err
		i.looks.Wait()
		if got := i.current(); got != step.after {
			t.Errorf("after the look: %q, want %q", got, step.after)
		}
	}
	select {
	case <-i.mended:
		t.Error("a worker that did start is to start again")
	default:
	}
}

// TestOnlyTheOpenExchangeDelivers: what an Exchange brings after a newer one has
// said Hello is not taken in, as that Hello did not name it.
func TestOnlyTheOpenExchangeDelivers(t *testing.T) {
	t.Parallel()
	d := newDesk(&results{bounds: usualBounds()}, hclog.NewNullLogger())
	stamp := &workerv1.Stamp{Attempt: 1, DeadlineUnixMs: time.Now().Add(time.Minute).UnixMilli()}
	claim := func(from *outbox) bool {
		mine, refused := d.claim(from, attempt{id: uuid.NewString(), n: 1}, stamp, func() {})
		if refused != nil {
			t.Errorf("refused: %v", refused)
		}
		return mine != nil
	}
	old, latest := newOutbox(), newOutbox()
	d.attach(old, "serial")
	if !claim(old) {
		t.Error("the open exchange brought nothing in")
	}
	d.attach(latest, "serial")
	if claim(old) || !claim(latest) {
		t.Error("an exchange that was replaced brought something in")
	}
	d.detach(old)
	if !claim(latest) {
		t.Error("the end of the old exchange ended the new one")
	}
	d.detach(latest)
	if claim(latest) {
		t.Error("an exchange that was lost brought something in")
	}
}

// TestOnlyWhatIsNotQueuedIsDropped: too much is dropped while no Exchange is
// open, and never what an open one has queued.
func TestOnlyWhatIsNotQueuedIsDropped(t *testing.T) {
	t.Parallel()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll(resultsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const most, tooMany = 8, 11
	d := newDesk(&results{root: root, bounds: bounds{kept: most, keptBytes: 1 << 20}, log: hclog.NewNullLogger()}, hclog.NewNullLogger())
	r := &runner{worker: &Worker{key: key, identity: identity.Identity{WorkerSerial: "DMN-GD-1-00000000-00000"}}}
	sender := envelope.ClientID(key.Public().(ed25519.PublicKey))
	finish := func() {
		a := attempt{id: uuid.NewString(), n: 1}
		result, err := r.sign(&workerv1.Header{Id: a.id, Sender: sender, Kind: "good.nothing"}, 1, outcome{status: workerv1.ResultStatus_RESULT_STATUS_OK})
		if err != nil {
			t.Fatal(err)
		}
		d.inFlight[a] = flight{turn: d.turns.take()}
		d.tasks.Add(1)
		d.finish(a, result, workerv1.ResultStatus_RESULT_STATUS_OK)
	}
	out := newOutbox()
	d.attach(out, "serial")
	for range tooMany {
		finish()
	}
	if n := len(d.results.kept); n != tooMany {
		t.Errorf("%d kept while the exchange was open, want %d", n, tooMany)
	}
	stamp := &workerv1.Stamp{Attempt: 1, DeadlineUnixMs: time.Now().Add(time.Minute).UnixMilli()}
	if _, refused := d.claim(out, attempt{id: uuid.NewString(), n: 1}, stamp, func() {}); refused == nil || refused.code != codeBusy {
		t.Errorf("a claim with a full store: %v", refused)
	}
	d.detach(out)
	finish()
	if n := len(d.results.kept); n != most {
		t.Errorf("%d kept with no exchange open, want %d", n, most)
	}
}

// TestTooLateToBegin: a task that was let in, but did not begin in time, does
// not run, whether its context has noticed or not.
func TestTooLateToBegin(t *testing.T) {
	t.Parallel()
	ran := false
	task := Func("good.run", "Run.", func(context.Context, struct{}) (struct{}, error) { ran = true; return struct{}{}, nil })
	j := &job{task: task, payload: []byte("{}")}
	past, stop := context.WithDeadline(t.Context(), time.Now().Add(-time.Millisecond))
	defer stop()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for code, c := range map[string]struct {
		ctx    context.Context
		status workerv1.ResultStatus
	}{
		codeExpired:   {past, workerv1.ResultStatus_RESULT_STATUS_REFUSED},
		codeCancelled: {cancelled, workerv1.ResultStatus_RESULT_STATUS_FAILED},
	} {
		got := perform(c.ctx, j)
		if got.status != c.status || !strings.Contains(string(got.payload), code) || ran {
			t.Errorf("%s: %s %s, ran %t", code, got.status, got.payload, ran)
		}
	}
	if got := perform(t.Context(), j); got.status != workerv1.ResultStatus_RESULT_STATUS_OK || !ran {
		t.Errorf("in time: %s %s", got.status, got.payload)
	}
}

func FuzzAttemptFile(f *testing.F) {
	for _, name := range []string{"0198c0de-0000-7000-8000-000000000000.1", "x.1", ".", "0198C0DE-0000-7000-8000-000000000000.1", "0198c0de-0000-7000-8000-000000000000.+1"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := parseAttempt(name)
		if ok && (a.file() != resultsDir+"/"+name || strings.Contains(name, "/")) {
			t.Fatalf("%q reads as %+v, whose file is %s", name, a, a.file())
		}
	})
}

// FuzzGate: no delivery makes the gate panic, and none that the fuzzer invents
// gets through; nothing is answered in a form that a host would not read.
func FuzzGate(f *testing.F) {
	_, clientKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	stampPublic, stampKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	const serial = "DMN-GD-1-00000000-00000"
	g := &gate{identity: &identity.Identity{WorkerSerial: serial, WorkerType: "good", StampKey: stampPublic}}
	sender := envelope.ClientID(clientKey.Public().(ed25519.PublicKey))
	e, err := envelope.New(clientKey, sender, &workerv1.Header{Recipient: serial, Kind: "good.nothing"}, []byte("{}"))
	if err != nil {
		f.Fatal(err)
	}
	sum, now := envelope.Hash(e), time.Now()
	stamp, signature, err := envelope.SignStamp(stampKey, &workerv1.Stamp{
		HeaderSha256: sum[:], AdmittedAtUnixMs: now.UnixMilli(), Serial: serial, Attempt: 1, DeadlineUnixMs: now.Add(time.Hour).UnixMilli(),
	})
	if err != nil {
		f.Fatal(err)
	}
	good, err := proto.Marshal(&workerv1.Delivery{Envelope: e, Stamp: stamp, StampSignature: signature})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	r := &runner{worker: &Worker{identity: *g.identity, key: clientKey}}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &workerv1.Delivery{}
		if proto.Unmarshal(data, d) != nil {
			return
		}
		h, s, refused := g.check(d)
		if refused == nil {
			if !proto.Equal(d.Envelope.Proof, e.Proof) || string(d.Stamp) != string(stamp) || h.Id == "" || s.Attempt != 1 {
				t.Fatalf("got through: %v", d)
			}
			return
		}
		header, attempt := claimedHeader(d)
		if result, err := r.sign(header, attempt, outcome{status: workerv1.ResultStatus_RESULT_STATUS_REFUSED, payload: encodeFailure(refused.code, refused.reason)}); err == nil {
			if _, err := envelope.Parse(result); err != nil {
				t.Fatal(err)
			}
		}
	})
}
