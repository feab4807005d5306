package broker

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// errNotOwed is for a result that nobody waits for: it came too late, or twice,
// or was never asked for.
var errNotOwed = errors.New("nothing is owed for it")

// accept records a worker's result, once, and only for what is owed. The error
// is errNotOwed, or worker.ErrInvalid for what is no answer to what was asked;
// both are for good. After any other the result may be offered again. The
// attempt is the one that the result names; its id is empty where none could be
// read.
func (b *Broker) accept(w worker.Worker, env *workerv1.Envelope) (attempt, error) {
	env = bare(env)
	h, err := envelope.Parse(env)
	if err != nil {
		return attempt{}, fmt.Errorf("read result: %w: %w", worker.ErrInvalid, err)
	}
	a := attempt{w.Serial, h.GetInReplyTo(), h.GetAttempt()}
	if h.GetSender() != string(w.Serial) || h.GetStatus() == workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return a, fmt.Errorf("result for envelope %s: not one of worker %s: %w", a.id, w.Serial, worker.ErrInvalid)
	}
	d := b.owed(a)
	if d == nil {
		return a, errNotOwed
	}
	if err := envelope.Verify(env, h, w.PublicKey); err != nil {
		return a, fmt.Errorf("result for envelope %s: %w: %w", a.id, worker.ErrInvalid, err)
	}
	if err := answers(h, d); err != nil {
		return a, err
	}
	return a, b.recordResult(d, env, h)
}

// owed is the delivery that an attempt is outstanding for, or nil.
func (b *Broker) owed(a attempt) *delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting[a]
}

// answers checks that a result answers just what was asked.
func answers(h *workerv1.Header, d *delivery) error {
	asked := &workerv1.Header{}
	if err := proto.Unmarshal(d.Header, asked); err != nil {
		return fmt.Errorf("read outstanding header: %w", err)
	}
	if h.GetRecipient() != asked.GetSender() || h.GetKind() != asked.GetKind() {
		return fmt.Errorf("result for envelope %s names another sender or kind: %w", d.EnvelopeID, worker.ErrInvalid)
	}
	return nil
}

func (b *Broker) recordResult(d *delivery, env *workerv1.Envelope, h *workerv1.Header) error {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.isSettled() {
		return errNotOwed
	}
	now := time.Now()
	fields := record.FieldsOfEnvelope(env, h, d.Serial)
	fields.AdmittedIndex = &d.LogIndex
	index, err := b.take(d, record.Entry{At: now, Kind: record.Result, Envelope: fields})
	switch {
	case errors.Is(err, worker.ErrNotFound):
		b.settle(d, outcome{err: errRecorded})
		return nil
	case err != nil:
		return fmt.Errorf("record result for envelope %s: %w", d.EnvelopeID, err)
	}
	b.settle(d, outcome{result: env, index: index, at: now})
	return nil
}
