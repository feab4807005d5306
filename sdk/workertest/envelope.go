package workertest

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Timeout is the deadline of tasks whose stamp the test does not edit.
const Timeout = 30 * time.Second

// Envelope signs a task for the worker as Sender. in is JSON as it is when it is
// a json.RawMessage, else it is marshalled. Edits see the header before it is
// signed.
func (w *Worker) Envelope(kind string, in any, edits ...func(*workerv1.Header)) *workerv1.Envelope {
	w.t.Helper()
	payload, ok := in.(json.RawMessage)
	if !ok {
		var err error
		payload, err = json.Marshal(in)
		must(w.t, err)
	}
	h := &workerv1.Header{Recipient: w.Identity.WorkerSerial, Kind: kind}
	for _, edit := range edits {
		edit(h)
	}
	sender := envelope.ClientID(w.Sender.Public().(ed25519.PublicKey))
	e, err := envelope.New(w.Sender, sender, h, payload)
	must(w.t, err)
	return e
}

// Stamp admits e as the worker's host does: now, attempt 1, due in Timeout.
// Edits see the stamp before it is signed.
func (w *Worker) Stamp(e *workerv1.Envelope, edits ...func(*workerv1.Stamp)) *workerv1.Delivery {
	w.t.Helper()
	return w.StampAs(w.host.stamp, e, edits...)
}

// StampAs is Stamp with a key that need not be the host's.
func (w *Worker) StampAs(key ed25519.PrivateKey, e *workerv1.Envelope, edits ...func(*workerv1.Stamp)) *workerv1.Delivery {
	w.t.Helper()
	now, sum := time.Now(), envelope.Hash(e)
	s := &workerv1.Stamp{
		HeaderSha256:     sum[:],
		AdmittedAtUnixMs: now.UnixMilli(),
		Serial:           w.Identity.WorkerSerial,
		Attempt:          1,
		DeadlineUnixMs:   now.Add(Timeout).UnixMilli(),
	}
	for _, edit := range edits {
		edit(s)
	}
	stamp, signature, err := envelope.SignStamp(key, s)
	must(w.t, err)
	return &workerv1.Delivery{Envelope: e, Stamp: stamp, StampSignature: signature}
}

// Answer is a worker's result, its form and signature checked.
type Answer struct {
	Status  workerv1.ResultStatus
	Output  json.RawMessage // of a task that is OK
	Code    string          // of one that is not
	Error   string
	Header  *workerv1.Header
	Attempt *workerv1.Attempt // what it answers
}

// OK says whether the task did what it was asked to.
func (a Answer) OK() bool { return a.Status == workerv1.ResultStatus_RESULT_STATUS_OK }

// String is the answer in one line.
func (a Answer) String() string {
	if a.OK() {
		return string(a.Output)
	}
	return fmt.Sprintf("%s %s: %s", a.Status, a.Code, a.Error)
}

// readAnswer checks a result as a client does.
func (w *Worker) readAnswer(e *workerv1.Envelope) (Answer, error) {
	h, err := envelope.Parse(e)
	if err != nil {
		return Answer{}, err
	}
	if err := envelope.Verify(e, h, w.Identity.PublicKey); err != nil {
		return Answer{}, err
	}
	if h.Sender != w.Identity.WorkerSerial || h.Status == workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return Answer{}, fmt.Errorf("not a result of %s", w.Identity.WorkerSerial)
	}
	a := Answer{Status: h.Status, Header: h, Attempt: &workerv1.Attempt{EnvelopeId: h.InReplyTo, Attempt: h.Attempt}}
	if a.OK() {
		a.Output = e.GetPayload()
		return a, nil
	}
	var failure struct{ Code, Error string }
	if err := json.Unmarshal(e.GetPayload(), &failure); err != nil {
		return Answer{}, fmt.Errorf("read failure: %w", err)
	}
	a.Code, a.Error = failure.Code, failure.Error
	return a, nil
}

// AttemptOf names the attempt that d delivers.
func AttemptOf(d *workerv1.Delivery) *workerv1.Attempt {
	h, s := &workerv1.Header{}, &workerv1.Stamp{}
	// What cannot be read is not named.
	_ = proto.Unmarshal(d.GetEnvelope().GetHeader(), h)
	_ = proto.Unmarshal(d.GetStamp(), s)
	return &workerv1.Attempt{EnvelopeId: h.GetId(), Attempt: s.GetAttempt()}
}
