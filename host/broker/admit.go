package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// The codes of what can stop an envelope after the gate. Those that the gate
// has too mean the same: it was right when it looked, and things have changed.
const (
	workerUnavailable = "worker_unavailable"
	overloaded        = "overloaded"
	recipientUnknown  = "recipient_unknown"
	recipientRetired  = "recipient_retired"
	senderUnknown     = "sender_unknown"
	senderRevoked     = "sender_revoked"
	callWithoutTask   = "call_without_task"
	callTooDeep       = "call_too_deep"
)

// reserve gets an envelope a place among what its worker may owe, then a link
// to the worker. The wait for a link counts against the place: senders to a
// worker that is away must not pile up either.
func (b *Broker) reserve(ctx context.Context, a Admitted, timeout time.Duration) (*delivery, error) {
	s := b.session(a.Worker.Serial)
	if s == nil {
		return nil, worker.Refuse(workerUnavailable, "worker %s is not in service", a.Worker.Serial)
	}
	size := len(a.Envelope.GetHeader()) + len(a.Envelope.GetPayload())
	if !s.places.take(size) {
		return nil, worker.Refuse(overloaded, "worker %s has %d envelopes or %d MiB outstanding", s.worker.Serial, maxOwed, maxOwedBytes>>20)
	}
	wait := min(timeout, time.Until(time.UnixMilli(a.Header.GetExpiresUnixMs())))
	l, err := s.connected(ctx, wait)
	if err != nil {
		s.places.give(size)
		return nil, err
	}
	d := newDelivery()
	d.link, d.release = l, func() { s.places.give(size) }
	return d, nil
}

// admit makes the admission durable: the entry, and the row that says that a
// result is owed. A wait may lie between the gate and this, so what may have
// changed meanwhile is looked at again. A delivery that was not admitted has
// given its place back.
func (b *Broker) admit(d *delivery, a Admitted, timeout time.Duration) (err error) {
	defer func() {
		if err != nil {
			d.release()
		}
	}()
	now := time.Now() // not in UTC: that would take away what durations are measured by
	if err := fresh(a.Header, now); err != nil {
		return err
	}
	d.Delivery = registry.Delivery{
		EnvelopeID: a.Header.GetId(), Sender: a.Header.GetSender(), Serial: a.Worker.Serial,
		Attempt: 1, Header: a.Envelope.GetHeader(), AdmittedAt: now, Deadline: now.Add(timeout),
	}
	if until := d.call.until; !until.IsZero() && until.Before(d.Deadline) {
		d.Deadline = until
	}
	fields := record.FieldsOfEnvelope(a.Envelope, a.Header, a.Worker.Serial)
	fields.Attempt, fields.Deadline = d.Attempt, d.Deadline
	if d.call.caller != nil {
		fields.CallerSerial, fields.Parent = string(d.call.caller.Serial), d.call.parent
	}
	entry, err := record.Entry{At: now, Kind: record.Admitted, Envelope: fields}.Encode()
	if err != nil {
		return fmt.Errorf("record envelope: %w", err)
	}
	// Not the caller's context: what was admitted must be overseen.
	err = b.Registry.Update(b.ctx, func(tx *registry.Tx) (err error) {
		if err := mayStill(tx, d); err != nil {
			return err
		}
		if d.LogIndex, err = tx.Append(entry); err != nil {
			return err
		}
		return tx.PutDelivery(d.Delivery)
	})
	if err != nil && !errors.Is(err, worker.ErrRefused) {
		return fmt.Errorf("record envelope: %w", err)
	}
	return err
}

func fresh(h *workerv1.Header, now time.Time) error {
	err := envelope.FreshAt(h, now)
	if late, ok := errors.AsType[*envelope.FormatError](err); ok {
		return worker.Refuse(late.Code, "%s", late.Reason)
	}
	return err
}

// mayStill says whether the sender may send and the worker serves, as of the
// transaction that admits.
func mayStill(tx *registry.Tx, d *delivery) error {
	if err := senderMay(tx, d); err != nil {
		return err
	}
	w, err := tx.Worker(d.Serial)
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return worker.Refuse(recipientUnknown, "no worker %s on this host", d.Serial)
	case err != nil:
		return err
	case w.State == worker.StateRetiring || w.State == worker.StateRetired:
		return worker.Refuse(recipientRetired, "worker %s is %s", d.Serial, w.State)
	case w.State != worker.StateLive && w.State != worker.StateRestarting:
		return worker.Refuse(workerUnavailable, "worker %s is %s", d.Serial, w.State)
	}
	return nil
}

func senderMay(tx *registry.Tx, d *delivery) error {
	if d.call.own {
		return nil
	}
	if d.call.caller != nil {
		w, err := tx.Worker(d.call.caller.Serial)
		if err == nil && (w.State == worker.StateRetiring || w.State == worker.StateRetired) {
			err = worker.Refuse(senderRevoked, "worker %s is %s", w.Serial, w.State)
		}
		return err
	}
	c, err := tx.Client(d.Sender)
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return worker.Refuse(senderUnknown, "the sender's key is not enrolled on this host")
	case err != nil:
		return err
	case !c.RevokedAt.IsZero():
		return worker.Refuse(senderRevoked, "client %s was revoked", c.Name)
	}
	return nil
}

// What one worker may owe at a time. A worker of the sdk does 64 tasks at once.
const (
	maxOwed      = 256
	maxOwedBytes = 64 << 20
)

// places counts what one worker owes.
type places struct {
	mu           sync.Mutex
	count, bytes int
}

func (p *places) take(size int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count >= maxOwed || p.bytes+size > maxOwedBytes {
		return false
	}
	p.count++
	p.bytes += size
	return true
}

func (p *places) give(size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count--
	p.bytes -= size
}
