package workertest

import (
	"context"
	"fmt"
	"sync"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// link shares one Exchange between many senders.
type link struct {
	exchange *Exchange
	sending  sync.Mutex
	closed   chan struct{} // after it, err says why

	mu      sync.Mutex
	waiting map[string]chan Answer // by envelope id
	err     error
}

// Send signs a task, delivers it, waits for its answer and receipts it. What
// keeps the answer from coming, ctx too, ends the test.
func (w *Worker) Send(ctx context.Context, kind string, in any) Answer {
	w.t.Helper()
	a, err := w.TrySend(ctx, kind, in)
	must(w.t, err)
	return a
}

// TrySend is Send with an error where no answer comes.
func (w *Worker) TrySend(ctx context.Context, kind string, in any) (Answer, error) {
	return w.Deliver(ctx, w.Stamp(w.Envelope(kind, in)))
}

// Deliver delivers d as it is, waits for its answer, no longer than Timeout, and
// receipts it.
func (w *Worker) Deliver(ctx context.Context, d *workerv1.Delivery) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	l, err := w.getLink(ctx)
	if err != nil {
		return Answer{}, err
	}
	id := AttemptOf(d).GetEnvelopeId()
	answer := make(chan Answer, 1)
	l.expect(id, answer)
	defer l.expect(id, nil)
	l.sending.Lock()
	err = l.exchange.Deliver(d)
	l.sending.Unlock()
	if err != nil {
		return Answer{}, fmt.Errorf("deliver: %w", err)
	}
	select {
	case a := <-answer:
		return a, nil
	case <-l.closed:
		return Answer{}, fmt.Errorf("await answer: %w", l.err)
	case <-ctx.Done():
		return Answer{}, fmt.Errorf("await answer: %w", ctx.Err())
	}
}

// getLink is the Exchange that Send uses, opened anew where it is lost.
func (w *Worker) getLink(ctx context.Context) (*link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.link != nil {
		select {
		case <-w.link.closed:
		default:
			return w.link, nil
		}
	}
	e, err := w.openWithin(ctx)
	if err != nil {
		return nil, fmt.Errorf("open exchange: %w", err)
	}
	l := &link{exchange: e, closed: make(chan struct{}), waiting: map[string]chan Answer{}}
	go l.receive()
	w.link = l
	return l, nil
}

// openWithin opens an Exchange that outlives ctx, within ctx.
func (w *Worker) openWithin(ctx context.Context) (*Exchange, error) {
	outer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	e, err := w.Open(outer)
	if err != nil {
		cancel()
		return nil, err
	}
	if !stop() {
		e.Close()
		return nil, ctx.Err()
	}
	e.cancel = cancel // ends the stream's own context too
	return e, nil
}

// unlink waits until the shared Exchange is gone.
func (w *Worker) unlink() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.link != nil {
		w.link.exchange.Close()
		<-w.link.closed
		w.link = nil
	}
}

func (l *link) expect(id string, answer chan Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if answer == nil {
		delete(l.waiting, id)
		return
	}
	l.waiting[id] = answer
}

// receive hands answers to whom waits for them, and receipts them all.
func (l *link) receive() {
	defer close(l.closed)
	for {
		a, err := l.exchange.Result()
		if err != nil {
			l.err = err
			return
		}
		l.sending.Lock()
		err = l.exchange.Receipt(a.Attempt) // before anything that the answer leads to
		l.sending.Unlock()
		if err != nil {
			l.err = err
			return
		}
		l.mu.Lock()
		answer, ok := l.waiting[a.Attempt.GetEnvelopeId()]
		delete(l.waiting, a.Attempt.GetEnvelopeId())
		l.mu.Unlock()
		if ok {
			answer <- a
		}
	}
}
