package sdk

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// How many tasks a worker does at once, and how many it has in flight: these and
// those that wait for their turn. A host lets a worker owe no more.
const (
	maxRunning  = 64
	maxInFlight = 256
)

// desk is where deliveries come in and results go out. It knows each attempt in
// exactly one place: in flight, or kept, or done. Its lock makes the step from
// one to the next, and what a new Exchange is told of them, one thing.
type desk struct {
	log hclog.Logger

	mu       sync.Mutex
	inFlight map[attempt]flight
	turns    turns
	replays  *replays
	results  *results
	out      *outbox // of the Exchange that is open, or nil
	draining bool
	closed   bool
	done     uint64
	failed   uint64
	tasks    sync.WaitGroup
}

// flight is an attempt that was claimed and is not finished.
type flight struct {
	cancel context.CancelFunc
	turn   *turn
}

func newDesk(r *results, log hclog.Logger) *desk {
	return &desk{
		log:      log,
		inFlight: map[attempt]flight{},
		replays:  newReplays(),
		results:  r,
	}
}

// claim takes an attempt in, to be run when its turn comes and ended by finish.
// What is already in flight, or kept, is neither claimed nor refused: its own
// result is the answer. Nor is what came by an Exchange that is no longer the
// open one: the host has been told, by Hello, that it is not here.
func (d *desk) claim(from *outbox, a attempt, stamp *workerv1.Stamp, cancel context.CancelFunc) (*turn, *refusal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.inFlight[a]; ok || d.out != from {
		return nil, nil
	}
	if d.results.has(a) {
		d.offer(item{kept: a})
		return nil, nil
	}
	if d.draining {
		return nil, refuse(codeBusy, "the worker is ending")
	}
	if len(d.inFlight) >= maxInFlight {
		return nil, refuse(codeBusy, "%d tasks are in flight", len(d.inFlight))
	}
	if d.results.full(len(d.inFlight)) {
		return nil, refuse(codeBusy, "%d results wait for the host's receipt", len(d.results.kept))
	}
	id, err := uuid.Parse(a.id)
	if err != nil {
		return nil, refuse(codeMalformed, "the id is not a UUID")
	}
	now := time.Now()
	if !now.Before(time.UnixMilli(stamp.DeadlineUnixMs)) {
		return nil, refuse(codeExpired, pastDeadline)
	}
	if err := d.replays.claim(id, a.n, forgettable(stamp), now); err != nil {
		return nil, err
	}
	mine := d.turns.take()
	d.inFlight[a] = flight{cancel: cancel, turn: mine}
	d.tasks.Add(1)
	d.advance()
	return mine, nil
}

// advance lets tasks begin whose turn it is. None begins while there is no room
// for its result: what a host does not take in holds up what it asks for.
func (d *desk) advance() {
	if d.results.hasRoom() {
		d.turns.advance()
	}
}

// finish ends a claimed attempt: its result is kept first, then offered. A
// result that cannot be kept is offered once and lost with the stream.
func (d *desk) finish(a attempt, result *workerv1.Envelope, status workerv1.ResultStatus) {
	defer d.tasks.Done()
	kept, err := d.results.write(a, result)
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.advance()
	d.turns.leave(d.inFlight[a].turn)
	delete(d.inFlight, a)
	switch status {
	case workerv1.ResultStatus_RESULT_STATUS_OK:
		d.done++
	case workerv1.ResultStatus_RESULT_STATUS_FAILED:
		d.failed++
	}
	if err != nil {
		d.log.Error("could not keep a result", "envelope", a.id, "attempt", a.n, "error", err)
		d.offer(item{frame: resultFrame(result)})
		return
	}
	d.results.add(kept)
	if d.out == nil {
		d.results.trim()
		return // the next Exchange is offered it
	}
	d.offer(item{kept: a})
}

// keptHeader is the header of a kept result, or nil where the host has it.
func (d *desk) keptHeader(a attempt) *workerv1.Header {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.results.header(a)
}

// offer puts i into the open Exchange, if there is one. What a host does not
// read fast enough it is offered again by the next Exchange, if it is kept.
func (d *desk) offer(i item) {
	if !d.out.push(i) {
		d.log.Warn("dropped a result: the host does not read", "kept", i.frame == nil)
	}
}

// receipt forgets a result that the host has.
func (d *desk) receipt(a attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.results.remove(a)
	d.advance()
}

// cancel asks a task to end. One that is not in flight is no error.
func (d *desk) cancel(a attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f, ok := d.inFlight[a]; ok {
		f.cancel()
	}
}

// attach makes out the open Exchange, with everything that the host must be
// told first, and ends the one before.
func (d *desk) attach(out *outbox, serial string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hello := &workerv1.Hello{Serial: serial}
	for a := range d.inFlight {
		hello.InFlight = append(hello.InFlight, a.proto())
	}
	kept := d.results.attempts()
	for _, a := range kept {
		hello.Kept = append(hello.Kept, a.proto())
	}
	out.push(item{frame: &workerv1.ExchangeResponse{Frame: &workerv1.ExchangeResponse_Hello{Hello: hello}}})
	for _, a := range kept {
		out.push(item{kept: a})
	}
	if d.closed {
		out.finish()
	}
	d.out.replace()
	d.out = out
}

// detach ends an Exchange that has been lost. One that was replaced is no
// longer the desk's.
func (d *desk) detach(out *outbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.out == out {
		d.out = nil
	}
}

// drain lets nothing more in and says when what is in flight has ended.
func (d *desk) drain() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.draining = true
	ended := make(chan struct{})
	go func() {
		d.tasks.Wait()
		close(ended)
	}()
	return ended
}

// close ends the open Exchange, and any that may still come, once it is empty.
func (d *desk) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.out.finish()
}

// counts are for the heartbeat.
func (d *desk) counts() (inFlight int, done, failed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.inFlight), d.done, d.failed
}
