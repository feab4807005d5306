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
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// attempt names one delivery of one envelope to one worker.
type attempt struct {
	serial worker.Serial
	id     string
	number uint32
}

func (a attempt) proto() *workerv1.Attempt {
	return &workerv1.Attempt{EnvelopeId: a.id, Attempt: a.number}
}

// delivery is an admitted envelope whose closing entry is still owed.
type delivery struct {
	registry.Delivery

	call     call
	link     *link       // that it is routed on; nil when an earlier host routed it
	release  func()      // gives its place back
	ending   chan ending // asks its overseer to close it now; holds one
	overseen bool        // guarded by the broker's mu

	closing sync.Mutex    // held by who is closing it
	settled chan struct{} // closed once the closing entry is recorded

	once    sync.Once
	told    chan struct{} // closed once outcome is set
	outcome outcome
}

// ending is why a delivery is closed without a result.
type ending struct {
	status string
	why    error
}

// What a closing entry says when the worker signed no result.
const (
	statusDeadline = "deadline_exceeded"
	statusLost     = "lost"
)

// outcome is what the sender hears.
type outcome struct {
	result *workerv1.Envelope // nil when the worker gave none in time
	index  uint64             // of the closing entry
	at     time.Time
	err    error // why there is no result
}

func newDelivery() *delivery {
	return &delivery{
		release: func() {}, ending: make(chan ending, 1),
		settled: make(chan struct{}), told: make(chan struct{}),
	}
}

func (d *delivery) attempt() attempt { return attempt{d.Serial, d.EnvelopeID, d.Attempt} }

// tell gives the sender an outcome, once. It may come before the closing entry
// is recorded, when that cannot be done now.
func (d *delivery) tell(o outcome) {
	d.once.Do(func() {
		d.outcome = o
		close(d.told)
	})
}

func (d *delivery) reply(w worker.Worker) (Reply, error) {
	if d.outcome.err != nil {
		return Reply{}, d.outcome.err
	}
	return Reply{
		Result: d.outcome.result, Worker: w, AdmittedIndex: d.LogIndex, ResultIndex: d.outcome.index,
		Duration: d.outcome.at.Sub(d.AdmittedAt),
	}, nil
}

func (d *delivery) isSettled() bool {
	select {
	case <-d.settled:
		return true
	default:
		return false
	}
}

// oversee sees to it that d is closed when its time is over, or when end asks
// for it. Overseeing twice is overseeing once.
func (b *Broker) oversee(d *delivery, patience time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.overseen || d.isSettled() || b.ctx.Err() != nil {
		return
	}
	d.overseen = true
	b.waiting[d.attempt()] = d
	b.wg.Go(func() { b.untilClosed(d, patience) })
}

// retryEvery spaces the tries to record what the registry cannot take now.
const retryEvery = time.Second

func (b *Broker) untilClosed(d *delivery, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var e ending
	select {
	case <-d.settled:
		return
	case <-b.ctx.Done():
		return
	case e = <-d.ending:
	case <-timer.C:
		e = ending{statusDeadline, fmt.Errorf("worker %s gave no result in time: %w", d.Serial, worker.ErrDeadline)}
	}
	err := b.close(d, e)
	if e.status == statusDeadline {
		b.cancelTask(d.attempt())
	}
	if err != nil {
		b.Logger.Error("outcome not recorded yet", "serial", d.Serial, "envelope", d.EnvelopeID, "status", e.status, "error", err)
	}
	for err != nil && pause(b.ctx, retryEvery) {
		err = b.close(d, e)
	}
}

// close records that there is no result, if a result did not come first. On an
// error the sender has been told and d is still owed.
func (b *Broker) close(d *delivery, e ending) error {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.isSettled() {
		return nil
	}
	now := time.Now()
	fields := &record.EnvelopeFields{
		InReplyTo: d.EnvelopeID, Sender: string(d.Serial), Recipient: d.Sender, WorkerSerial: string(d.Serial),
		Attempt: d.Attempt, AdmittedIndex: &d.LogIndex, Status: e.status,
	}
	index, err := b.take(d, record.Entry{At: now, Kind: record.Result, Envelope: fields, Reason: e.why.Error()})
	switch {
	case errors.Is(err, worker.ErrNotFound):
		b.settle(d, outcome{err: errRecorded})
	case err != nil:
		d.tell(outcome{err: fmt.Errorf("record outcome: %w", err)})
		return err
	default:
		b.settle(d, outcome{index: index, at: now, err: e.why})
	}
	return nil
}

// errRecorded is for the case that a commit failed and stands all the same.
var errRecorded = fmt.Errorf("the outcome is in the record, but could not be read back: %w", worker.ErrUnavailable)

// take ends what is owed and appends the entry that says how, in one
// transaction. It is called with d.closing held.
func (b *Broker) take(d *delivery, e record.Entry) (index uint64, err error) {
	entry, err := e.Encode()
	if err != nil {
		return 0, err
	}
	err = b.Registry.Update(b.ctx, func(tx *registry.Tx) (err error) {
		if _, err = tx.TakeDelivery(d.EnvelopeID, d.Serial, d.Attempt); err != nil {
			return err
		}
		index, err = tx.Append(entry)
		return err
	})
	return index, err
}

// settle ends the waiting for d. It is called once, with d.closing held.
func (b *Broker) settle(d *delivery, o outcome) {
	b.mu.Lock()
	delete(b.waiting, d.attempt())
	close(d.settled)
	b.mu.Unlock()
	d.release()
	d.tell(o)
}

// end asks for d to be closed without a result.
func (b *Broker) end(d *delivery, e ending) {
	select {
	case d.ending <- e:
	default: // it is being closed already
	}
	b.oversee(d, readoptionGrace)
}

// lose closes what a worker owed and can no longer give, and waits until its
// senders have been told.
func (b *Broker) lose(ctx context.Context, lost []*delivery, why error) {
	for _, d := range lost {
		b.end(d, ending{statusLost, why})
	}
	for _, d := range lost {
		select {
		case <-d.told:
		case <-ctx.Done():
		case <-b.ctx.Done():
		}
	}
}

// outstanding lists what is still owed and picked.
func (b *Broker) outstanding(pick func(*delivery) bool) []*delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	var owed []*delivery
	for _, d := range b.waiting {
		if pick(d) {
			owed = append(owed, d)
		}
	}
	return owed
}

// pause waits, or says that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
