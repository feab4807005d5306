package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// attempt names one delivery of one envelope to one worker.
type attempt struct {
	serial worker.Serial
	id     string
	number uint32
}

// delivery is an admitted envelope whose closing entry is still owed.
type delivery struct {
	registry.Delivery

	patience time.Duration // until it is closed without a result
	closed   chan struct{} // closed once outcome is set
	outcome  outcome
}

// outcome is how a delivery was closed.
type outcome struct {
	result *workerv1.Envelope // nil when the worker gave none in time
	index  uint64             // of the closing entry
	at     time.Time
	err    error // why there is no result
}

func newDelivery(d registry.Delivery, patience time.Duration) *delivery {
	return &delivery{Delivery: d, patience: patience, closed: make(chan struct{})}
}

func (d *delivery) attempt() attempt { return attempt{d.Serial, d.EnvelopeID, d.Attempt} }

// await waits for the outcome on behalf of the sender.
func (d *delivery) await(ctx context.Context, w worker.Worker) (Reply, error) {
	select {
	case <-d.closed:
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
	if d.outcome.err != nil {
		return Reply{}, d.outcome.err
	}
	return Reply{
		Result: d.outcome.result, Worker: w, AdmittedIndex: d.LogIndex, ResultIndex: d.outcome.index,
		Duration: d.outcome.at.Sub(d.AdmittedAt),
	}, nil
}

// oversee sees to it that d is closed when its time is over.
func (b *Broker) oversee(d *delivery) {
	b.mu.Lock()
	b.waiting[d.attempt()] = d
	b.mu.Unlock()
	b.wg.Go(func() {
		timer := time.NewTimer(d.patience)
		defer timer.Stop()
		select {
		case <-d.closed:
		case <-b.ctx.Done():
		case <-timer.C:
			b.close(d.attempt(), statusDeadline, fmt.Errorf("worker %s gave no result in time: %w", d.Serial, worker.ErrDeadline))
			b.cancelTask(d.attempt())
		}
	})
}

// What a closing entry says when the worker signed no result.
const (
	statusDeadline = "deadline_exceeded"
	statusLost     = "lost"
)

// close closes a delivery without a result, if a result did not come first.
func (b *Broker) close(a attempt, status string, why error) {
	now := time.Now().UTC()
	var index uint64
	err := b.Registry.Update(b.ctx, func(tx *registry.Tx) error {
		d, err := tx.TakeDelivery(a.id, a.serial, a.number)
		if err != nil {
			return err
		}
		fields := &record.EnvelopeFields{
			InReplyTo: a.id, Sender: string(a.serial), Recipient: d.Sender, WorkerSerial: string(a.serial),
			Attempt: a.number, AdmittedIndex: &d.LogIndex, Status: status,
		}
		index, err = appendEntry(tx, record.Entry{At: now, Kind: record.Result, Envelope: fields, Reason: why.Error()})
		return err
	})
	switch {
	case errors.Is(err, worker.ErrNotFound): // the result won; its own path tells the sender
	case err != nil:
		b.settle(a, outcome{err: fmt.Errorf("record outcome: %w", err)})
	default:
		b.settle(a, outcome{index: index, at: now, err: why})
	}
}

// accept records a worker's result, once, and only for what is owed. A nil
// error means that the worker may forget it: it is recorded, or was settled
// before and will never be wanted.
func (b *Broker) accept(w worker.Worker, env *workerv1.Envelope) (attempt, error) {
	h, err := envelope.Parse(env)
	if err != nil {
		return attempt{}, fmt.Errorf("read result: %w", err)
	}
	a := attempt{w.Serial, h.GetInReplyTo(), h.GetAttempt()}
	if h.GetSender() != string(w.Serial) || h.GetStatus() == workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return a, fmt.Errorf("result for envelope %s: not one of worker %s: %w", a.id, w.Serial, worker.ErrInvalid)
	}
	if err := envelope.Verify(env, h, w.PublicKey); err != nil {
		return a, fmt.Errorf("result for envelope %s: %w", a.id, err)
	}
	index, now := uint64(0), time.Now().UTC()
	err = b.Registry.Update(b.ctx, func(tx *registry.Tx) error {
		d, err := tx.TakeDelivery(a.id, a.serial, a.number)
		if err != nil {
			return err
		}
		if err := answers(h, d); err != nil {
			return err
		}
		fields := record.FieldsOfEnvelope(env, h, w.Serial)
		fields.AdmittedIndex = &d.LogIndex
		index, err = appendEntry(tx, record.Entry{At: now, Kind: record.Result, Envelope: fields})
		return err
	})
	switch {
	case errors.Is(err, worker.ErrNotFound):
		b.Logger.Warn("result refused: nothing is owed for it", "serial", w.Serial, "envelope", a.id, "attempt", a.number)
		return a, nil
	case err != nil:
		return a, fmt.Errorf("record result for envelope %s: %w", a.id, err)
	}
	b.settle(a, outcome{result: env, index: index, at: now})
	return a, nil
}

// answers checks that a result answers just what was asked.
func answers(h *workerv1.Header, d registry.Delivery) error {
	asked := &workerv1.Header{}
	if err := proto.Unmarshal(d.Header, asked); err != nil {
		return fmt.Errorf("read outstanding header: %w", err)
	}
	if h.GetRecipient() != asked.GetSender() || h.GetKind() != asked.GetKind() {
		return fmt.Errorf("result for envelope %s names another sender or kind: %w", d.EnvelopeID, worker.ErrInvalid)
	}
	return nil
}

// settle tells whoever waits for the attempt.
func (b *Broker) settle(a attempt, o outcome) {
	b.mu.Lock()
	d := b.waiting[a]
	delete(b.waiting, a)
	b.mu.Unlock()
	if d != nil {
		d.outcome = o
		close(d.closed)
	}
}

// outstanding lists the attempts that a worker still owes.
func (b *Broker) outstanding(serial worker.Serial) []attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	var owed []attempt
	for a := range b.waiting {
		if a.serial == serial {
			owed = append(owed, a)
		}
	}
	return owed
}

func appendEntry(tx *registry.Tx, e record.Entry) (uint64, error) {
	line, err := e.Encode()
	if err != nil {
		return 0, err
	}
	return tx.Append(line)
}

// lose closes what a worker owed and can no longer give.
func (b *Broker) lose(ctx context.Context, attempts []attempt, why error) {
	for _, a := range attempts {
		if ctx.Err() != nil {
			return
		}
		b.close(a, statusLost, why)
	}
}
