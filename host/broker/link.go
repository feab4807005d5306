package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// link is one connection's envelope stream, written by one goroutine.
type link struct {
	// deliveries holds none: a delivery is with its sender, where its deadline
	// ends it, or with the writer, and then the next Hello tells of it.
	deliveries chan *workerv1.ExchangeRequest
	notes      chan *workerv1.ExchangeRequest // receipts and cancels
	done       <-chan struct{}                // closed when the streams have ended
}

const (
	// helloTimeout is how long a worker has to prove itself and say Hello.
	helloTimeout = 10 * time.Second
	// maxHello is how many attempts a Hello may name: the sdk's workers have at
	// most 256 in flight and 512 kept.
	maxHello = 4096
	// lastWords bounds how long what a worker sent before it ended is read.
	lastWords = 5 * time.Second
	// maxBeat bounds a heartbeat, in bytes.
	maxBeat = 64 << 10
)

// connect holds one connection until it breaks. lived is how long it was of use.
func (s *session) connect(ctx context.Context) (lived time.Duration, err error) {
	conn, err := s.dial()
	if err != nil {
		return 0, err
	}
	defer conn.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := workerv1.NewWorkerServiceClient(conn)
	opened, err := s.open(ctx, cancel, client)
	if err != nil {
		return 0, err
	}
	l := &link{
		deliveries: make(chan *workerv1.ExchangeRequest), notes: make(chan *workerv1.ExchangeRequest, 64), done: ctx.Done(),
	}
	var running sync.WaitGroup
	defer running.Wait()
	read := make(chan struct{})
	start := func(f func() error) {
		running.Go(func() {
			err := f()
			l.hearOut(err, read)
			cancel(err)
		})
	}
	start(func() error { return l.write(opened.exchange) })
	start(func() error { return s.pulse.run(ctx, s.worker.Serial, opened.beats) })
	running.Go(func() {
		defer close(read)
		cancel(newInbox(s, l, cancel).run(ctx, opened.exchange))
	})
	began := time.Now()
	s.setLink(l)
	defer s.setLink(nil)
	s.settleHello(l, opened.hello)
	<-ctx.Done()
	return time.Since(began), context.Cause(ctx)
}

// hearOut waits until everything is read that a worker sent before another of its
// streams ended for err, or for no longer than enough says. A worker that ends
// closes them all, in no order, and its last results are in one of them.
func (l *link) hearOut(err error, enough <-chan struct{}) {
	if errors.Is(err, worker.ErrInvalid) {
		return
	}
	select {
	case <-enough:
	case <-l.done:
	case <-time.After(lastWords):
	}
}

// streams are those of one connection.
type streams struct {
	exchange workerv1.WorkerService_ExchangeClient
	beats    workerv1.WorkerService_HeartbeatClient
	hello    *workerv1.Hello // with which the worker began the exchange
}

// open opens the streams and reads the worker's Hello. Heartbeats that come sooner
// wait: only who has said Hello lives.
func (s *session) open(ctx context.Context, cancel context.CancelCauseFunc, client workerv1.WorkerServiceClient) (o streams, err error) {
	late := time.AfterFunc(s.b.helloTimeout, func() {
		cancel(fmt.Errorf("no hello within %s: %w", s.b.helloTimeout, worker.ErrDeadline))
	})
	defer late.Stop()
	o.exchange, err = client.Exchange(ctx, grpc.MaxCallRecvMsgSize(wire.MaxMessage), grpc.MaxCallSendMsgSize(wire.MaxMessage))
	if err == nil {
		o.beats, err = client.Heartbeat(ctx, grpc.MaxCallRecvMsgSize(maxBeat))
	}
	if err == nil {
		o.hello, err = s.hello(o.exchange)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return streams{}, fmt.Errorf("await hello: %w", err)
	}
	return o, nil
}

// hello reads what has to come first.
func (s *session) hello(exchange workerv1.WorkerService_ExchangeClient) (*workerv1.Hello, error) {
	first, err := exchange.Recv()
	if err != nil {
		return nil, err
	}
	hello := first.GetHello()
	switch named := len(hello.GetInFlight()) + len(hello.GetKept()); {
	case hello.GetSerial() != string(s.worker.Serial):
		return nil, fmt.Errorf("worker %q answered: %w", hello.GetSerial(), worker.ErrInvalid)
	case named > maxHello:
		return nil, fmt.Errorf("it names %d attempts, more than %d: %w", named, maxHello, worker.ErrInvalid)
	}
	return hello, nil
}

// settleHello closes what the worker owes and neither works on nor has kept:
// its process died over it. What is routed on the new link itself is none of
// the Hello's: it was said before.
func (s *session) settleHello(l *link, hello *workerv1.Hello) {
	alive := map[attempt]bool{}
	for _, list := range [][]*workerv1.Attempt{hello.GetInFlight(), hello.GetKept()} {
		for _, a := range list {
			alive[attempt{s.worker.Serial, a.GetEnvelopeId(), a.GetAttempt()}] = true
		}
	}
	lost := s.b.outstanding(func(d *delivery) bool {
		return d.Serial == s.worker.Serial && d.link != l && !alive[d.attempt()]
	})
	for _, d := range lost {
		s.b.end(d, ending{statusLost, fmt.Errorf("worker %s lost the task when it or its connection ended: %w", d.Serial, worker.ErrUnavailable)})
	}
}

// write sends what is handed to the link.
func (l *link) write(exchange workerv1.WorkerService_ExchangeClient) error {
	for {
		var frame *workerv1.ExchangeRequest
		select {
		case frame = <-l.deliveries:
		case frame = <-l.notes:
		case <-l.done:
			return nil
		}
		if err := exchange.Send(frame); err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
	}
}

// receipt tells the worker that it may forget a result. A worker that does not
// read its receipts is not read from either.
func (l *link) receipt(a attempt) {
	select {
	case l.notes <- &workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Receipt{Receipt: a.proto()}}:
	case <-l.done:
	}
}

// route stamps the envelope and hands it to the delivery's link. What cannot be
// handed over any more never reached the worker and is closed as lost.
func (b *Broker) route(ctx context.Context, d *delivery, env *workerv1.Envelope) {
	hash := envelope.Hash(env)
	stamp, signature, err := envelope.SignStamp(b.StampKey, &workerv1.Stamp{
		HeaderSha256: hash[:], AdmittedAtUnixMs: d.AdmittedAt.UnixMilli(), LogIndex: d.LogIndex,
		Serial: string(d.Serial), Attempt: d.Attempt, DeadlineUnixMs: d.Deadline.UnixMilli(),
	})
	if err == nil {
		err = d.link.deliver(ctx, d, &workerv1.Delivery{Envelope: env, Stamp: stamp, StampSignature: signature})
	}
	if err != nil {
		b.end(d, ending{statusLost, fmt.Errorf("envelope was not handed to worker %s: %w", d.Serial, err)})
	}
}

// deliver hands a delivery to the writer, unless something ends it before the
// worker reads that far.
func (l *link) deliver(ctx context.Context, d *delivery, frame *workerv1.Delivery) error {
	select {
	case l.deliveries <- &workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Delivery{Delivery: frame}}:
		return nil
	case <-d.told:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("its sender left: %w", worker.ErrUnavailable)
	case <-l.done:
		return fmt.Errorf("the connection ended: %w", worker.ErrUnavailable)
	}
}
