package sdk_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/workertest"
)

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	return key
}

// TestRefusals: what the gate of the worker itself refuses, whatever the host
// says, and how it calls it.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	hello := func(edits ...func(*workerv1.Header)) *workerv1.Envelope {
		return w.Envelope("probe.echo", text{Text: "hello"}, edits...)
	}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).UnixMilli() }
	// tamper changes the header after it was signed.
	tamper := func(edit func(*workerv1.Header)) *workerv1.Envelope {
		e := hello()
		h := &workerv1.Header{}
		must(t, proto.Unmarshal(e.Header, h))
		edit(h)
		var err error
		e.Header, err = proto.Marshal(h)
		must(t, err)
		return e
	}
	payload := hello()
	payload.Payload = []byte(`{"text":"hullo"}`)
	big := hello()
	big.Payload = make([]byte, envelope.MaxPayload+1)
	unproved := hello()
	unproved.Proof = nil
	asWorker, err := envelope.New(w.Sender, w.Identity.WorkerSerial,
		&workerv1.Header{Recipient: w.Identity.WorkerSerial, Kind: "probe.echo"}, []byte(`{"text":""}`))
	must(t, err)
	result, err := envelope.New(w.Sender, w.Identity.WorkerSerial, &workerv1.Header{
		Recipient: w.Identity.WorkerSerial, Kind: "probe.echo", InReplyTo: "01234567-89ab-7def-8123-456789abcdef",
		Attempt: 1, Status: workerv1.ResultStatus_RESULT_STATUS_OK,
	}, []byte(`{}`))
	must(t, err)
	spoiled := w.Stamp(hello())
	spoiled.StampSignature[0]++
	noStamp := w.Stamp(hello())
	noStamp.Stamp = nil
	otherSerial := "DMN-PB-2-0000abcd-00002"

	for name, c := range map[string]struct {
		delivery *workerv1.Delivery
		code     string
	}{
		"tampered payload":   {w.Stamp(payload), "bad_proof"},
		"tampered recipient": {w.Stamp(tamper(func(h *workerv1.Header) { h.Recipient = "pool:probe" })), "bad_proof"},
		"other's name": {w.Stamp(tamper(func(h *workerv1.Header) {
			h.Sender = envelope.ClientID(newKey(t).Public().(ed25519.PublicKey))
		})), "bad_proof"},
		"sent by a worker":  {w.Stamp(asWorker), "bad_proof"},
		"a result":          {w.Stamp(result), "malformed"},
		"no proof":          {w.Stamp(unproved), "malformed"},
		"bad version":       {w.Stamp(tamper(func(h *workerv1.Header) { h.Version = 2 })), "malformed"},
		"too large":         {w.Stamp(big), "payload_too_large"},
		"foreign stamp":     {w.StampAs(newKey(t), hello()), "bad_stamp"},
		"spoiled stamp":     {spoiled, "bad_stamp"},
		"no stamp":          {noStamp, ""},
		"stamp for another": {&workerv1.Delivery{Envelope: hello(), Stamp: w.Stamp(hello()).Stamp}, "bad_stamp"},
		"stamp for another header": {w.Stamp(hello(), func(s *workerv1.Stamp) {
			sum := sha256.Sum256([]byte("another"))
			s.HeaderSha256 = sum[:]
		}), "bad_stamp"},
		"to another worker":       {w.Stamp(hello(func(h *workerv1.Header) { h.Recipient = otherSerial })), "misaddressed"},
		"to another pool":         {w.Stamp(hello(func(h *workerv1.Header) { h.Recipient = "pool:probes" })), "misaddressed"},
		"stamped for another":     {w.Stamp(hello(), func(s *workerv1.Stamp) { s.Serial = otherSerial }), "misaddressed"},
		"admitted after expiry":   {w.Stamp(hello(func(h *workerv1.Header) { h.IssuedUnixMs = ago(2 * time.Minute) })), "expired"},
		"admitted before issue":   {w.Stamp(hello(func(h *workerv1.Header) { h.IssuedUnixMs = ago(-2 * time.Minute) })), "not_yet_valid"},
		"valid for too long":      {w.Stamp(hello(func(h *workerv1.Header) { h.ExpiresUnixMs = ago(-time.Hour) })), "ttl_too_long"},
		"long past its deadline":  {w.Stamp(hello(func(h *workerv1.Header) { h.IssuedUnixMs = ago(time.Hour) }), old(ago)), "expired"},
		"of a kind of no type":    {w.Stamp(w.Envelope("other.echo", text{})), "kind_unknown"},
		"of a kind that is not":   {w.Stamp(w.Envelope("probe.fly", text{})), "kind_unknown"},
		"a payload that misfits":  {w.Stamp(w.Envelope("probe.echo", size{})), "schema_mismatch"},
		"in the pool: no refusal": {w.Stamp(hello(func(h *workerv1.Header) { h.Recipient = "pool:probe" })), "OK"},
		"long ago, but in time: no refusal": {w.Stamp(hello(func(h *workerv1.Header) { h.IssuedUnixMs = ago(time.Hour) }),
			func(s *workerv1.Stamp) { s.AdmittedAtUnixMs = ago(time.Hour) }), "OK"},
	} {
		if c.code == "" {
			continue // says no attempt, so there is nothing to answer to; see TestUnanswerable
		}
		a, err := w.Deliver(t.Context(), c.delivery)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		as := a.Code
		if a.Status == workerv1.ResultStatus_RESULT_STATUS_OK {
			as = "OK"
		}
		if as != c.code || a.Status == workerv1.ResultStatus_RESULT_STATUS_FAILED {
			t.Errorf("%s: %s, want %s", name, a, c.code)
		}
	}
	eventually(t, "nothing is kept", func() bool { return len(resultFiles(t, w)) == 0 })
}

func old(ago func(time.Duration) int64) func(*workerv1.Stamp) {
	return func(s *workerv1.Stamp) {
		s.AdmittedAtUnixMs = ago(time.Hour)
		s.DeadlineUnixMs = ago(59 * time.Minute)
	}
}

// TestPastItsDeadline: what comes too late is not run, however little too late.
func TestPastItsDeadline(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	for _, late := range []time.Duration{time.Millisecond, time.Second, 28 * time.Second} {
		a, err := w.Deliver(t.Context(), w.Stamp(w.Envelope("probe.hold", text{}), func(s *workerv1.Stamp) {
			s.DeadlineUnixMs = time.Now().Add(-late).UnixMilli()
			s.AdmittedAtUnixMs = s.DeadlineUnixMs - 1000
		}))
		must(t, err)
		if a.Status != workerv1.ResultStatus_RESULT_STATUS_REFUSED || a.Code != "expired" {
			t.Errorf("%s late: %s", late, a)
		}
	}
	if len(p.holding) != 0 {
		t.Error("a task that came too late was run")
	}
}

// TestUnanswerable: what does not even say what it is gets no answer, and harms
// nothing.
func TestUnanswerable(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	e := mustOpen(t, w)
	d := w.Stamp(w.Envelope("probe.echo", text{Text: "the next"}))
	noStamp := proto.CloneOf(d)
	noStamp.Stamp = nil
	garbage := proto.CloneOf(d)
	garbage.Envelope.Header = []byte("\xff\xff garbage")
	long := proto.CloneOf(d)
	long.Envelope.Header = make([]byte, envelope.MaxHeader+1)
	for _, bad := range []*workerv1.Delivery{nil, {}, {Envelope: d.Envelope}, noStamp, garbage, long} {
		must(t, e.Deliver(bad))
	}
	must(t, e.Deliver(d))
	if a := mustResult(t, e); a.String() != `{"text":"the next"}` {
		t.Errorf("first answer: %s", a)
	}
	if n := strings.Count(w.Log(), "refused a delivery"); n != 6 {
		t.Errorf("%d refusals logged, want 6:\n%s", n, w.Log())
	}
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	w := newProbe().start(t)
	e := w.Envelope("probe.echo", text{Text: "hello"})
	for _, c := range []struct {
		attempt uint32
		code    string
	}{{2, ""}, {2, "replayed"}, {1, "replayed"}, {3, ""}, {3, "replayed"}} {
		a, err := w.Deliver(t.Context(), w.Stamp(e, func(s *workerv1.Stamp) { s.Attempt = c.attempt }))
		must(t, err)
		if a.Code != c.code || a.Header.Attempt != c.attempt {
			t.Errorf("attempt %d: %s, want %q", c.attempt, a, c.code)
		}
	}
}

// TestDuplicateWhileInFlight: the same attempt twice runs once and is answered
// once; a refusal would pass for its result.
func TestDuplicateWhileInFlight(t *testing.T) {
	t.Parallel()
	p := newProbe()
	w := p.start(t)
	e := mustOpen(t, w)
	d := w.Stamp(w.Envelope("probe.hold", text{Text: "once"}))
	must(t, e.Deliver(d))
	<-p.holding
	must(t, e.Deliver(d))
	must(t, e.Deliver(w.Stamp(w.Envelope("probe.echo", text{Text: "meanwhile"}))))
	if a := mustResult(t, e); a.String() != `{"text":"meanwhile"}` {
		t.Errorf("after the duplicate: %s", a)
	}
	p.releaseAll()
	first := mustResult(t, e)
	must(t, e.Deliver(d)) // kept now, and offered again as it is
	if second := mustResult(t, e); !first.OK() || second.Header.Id != first.Header.Id {
		t.Errorf("answers %s and %s", first, second)
	}
	must(t, e.Receipt(workertest.AttemptOf(d)))
	must(t, e.Deliver(d))
	if a := mustResult(t, e); a.Code != "replayed" {
		t.Errorf("after the receipt: %s", a)
	}
	if len(p.holding) != 0 {
		t.Error("the task ran more than once")
	}
}
