package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

var errDetached = errors.New("worker detached")

// session is the host's side of one worker: it dials, and dials again, until
// the worker is detached.
type session struct {
	b      *Broker
	worker worker.Worker
	dir    string
	cancel context.CancelFunc
	ended  chan struct{}
	pulse  *pulse

	mu   sync.Mutex
	link *link         // the streams of the moment; nil while there are none
	up   chan struct{} // closed while link is not nil
}

// link is one connection's envelope stream, written by one goroutine.
type link struct {
	frames chan *workerv1.ExchangeRequest
	done   <-chan struct{} // closed when the streams have ended
}

// Attach starts the session of a worker whose folder is dir. Attaching twice is
// the same as attaching once.
func (b *Broker) Attach(w worker.Worker, dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, attached := b.sessions[w.Serial]; attached || b.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(b.ctx)
	s := &session{
		b: b, worker: w, dir: dir, cancel: cancel,
		ended: make(chan struct{}), up: make(chan struct{}), pulse: newPulse(b.Interval),
	}
	b.sessions[w.Serial] = s
	b.wg.Go(func() {
		defer close(s.ended)
		s.run(ctx)
	})
}

// Detach ends a worker's session and closes what it still owed.
func (b *Broker) Detach(ctx context.Context, serial worker.Serial) {
	b.mu.Lock()
	s := b.sessions[serial]
	delete(b.sessions, serial)
	b.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.ended
	}
	b.lose(ctx, b.outstanding(serial), fmt.Errorf("worker %s was taken out of service: %w", serial, worker.ErrUnavailable))
}

// Dialling is eager while a worker comes up and calm while it stays away.
const (
	firstRetry = 2 * time.Millisecond
	lastRetry  = time.Second
)

func (s *session) run(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		connected, err := s.connect(ctx)
		if connected {
			retry = firstRetry
			s.b.Logger.Debug("worker disconnected", "serial", s.worker.Serial, "error", err)
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
		retry = min(retry*3/2, lastRetry)
	}
}

// connect holds one connection until it breaks. connected says whether the
// worker proved who it is.
func (s *session) connect(ctx context.Context) (connected bool, err error) {
	conn, err := s.dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := workerv1.NewWorkerServiceClient(conn)
	exchange, hello, err := openExchange(ctx, client, s.worker.Serial)
	if err != nil {
		return false, err
	}
	beats, err := client.Heartbeat(ctx)
	if err != nil {
		return false, fmt.Errorf("open heartbeat stream: %w", err)
	}
	l := &link{frames: make(chan *workerv1.ExchangeRequest, 64), done: ctx.Done()}
	var streams sync.WaitGroup
	defer streams.Wait()
	start := func(f func() error) { streams.Go(func() { cancel(f()) }) }
	start(func() error { return writeFrames(l, exchange) })
	start(func() error { return s.pulse.run(ctx, s.worker.Serial, beats) })
	start(func() error { return s.readResults(ctx, l, exchange) })
	s.setLink(l)
	defer s.setLink(nil)
	s.settleHello(ctx, hello)
	<-ctx.Done()
	return true, context.Cause(ctx)
}

func openExchange(ctx context.Context, client workerv1.WorkerServiceClient, serial worker.Serial) (workerv1.WorkerService_ExchangeClient, *workerv1.Hello, error) {
	exchange, err := client.Exchange(ctx, grpc.MaxCallRecvMsgSize(maxFrame), grpc.MaxCallSendMsgSize(maxFrame))
	if err != nil {
		return nil, nil, fmt.Errorf("open envelope stream: %w", err)
	}
	first, err := exchange.Recv()
	if err != nil {
		return nil, nil, fmt.Errorf("await hello: %w", err)
	}
	if hello := first.GetHello(); hello.GetSerial() == string(serial) {
		return exchange, hello, nil
	}
	return nil, nil, fmt.Errorf("await hello: worker %s answered for %s: %w", first.GetHello().GetSerial(), serial, worker.ErrInvalid)
}

// settleHello closes what the worker owes and neither works on nor has kept:
// it never arrived, or its process died over it.
func (s *session) settleHello(ctx context.Context, hello *workerv1.Hello) {
	alive := map[attempt]bool{}
	for _, list := range [][]*workerv1.Attempt{hello.GetInFlight(), hello.GetKept()} {
		for _, a := range list {
			alive[attempt{s.worker.Serial, a.GetEnvelopeId(), a.GetAttempt()}] = true
		}
	}
	var lost []attempt
	for _, a := range s.b.outstanding(s.worker.Serial) {
		if !alive[a] {
			lost = append(lost, a)
		}
	}
	s.b.lose(ctx, lost, fmt.Errorf("worker %s lost the task when it or its connection ended: %w", s.worker.Serial, worker.ErrUnavailable))
}

func writeFrames(l *link, exchange workerv1.WorkerService_ExchangeClient) error {
	for {
		select {
		case frame := <-l.frames:
			if err := exchange.Send(frame); err != nil {
				return fmt.Errorf("send frame: %w", err)
			}
		case <-l.done:
			return nil
		}
	}
}

// maxAccepting bounds the results of one worker that are being recorded at the
// same time: enough for them to share a commit.
const maxAccepting = 128

func (s *session) readResults(ctx context.Context, l *link, exchange workerv1.WorkerService_ExchangeClient) error {
	slots := make(chan struct{}, maxAccepting)
	var accepting sync.WaitGroup
	defer accepting.Wait()
	for {
		frame, err := exchange.Recv()
		if err != nil {
			return fmt.Errorf("receive result: %w", err)
		}
		s.pulse.alive()
		result := frame.GetResult()
		if result == nil {
			continue
		}
		slots <- struct{}{}
		accepting.Go(func() {
			defer func() { <-slots }()
			s.acceptResult(l, result)
		})
	}
}

func (s *session) acceptResult(l *link, result *workerv1.Envelope) {
	a, err := s.b.accept(s.worker, result)
	if err != nil {
		s.b.Logger.Warn("result not accepted", "serial", s.worker.Serial, "error", err)
		return
	}
	l.send(&workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Receipt{Receipt: a.proto()}})
}

func (a attempt) proto() *workerv1.Attempt {
	return &workerv1.Attempt{EnvelopeId: a.id, Attempt: a.number}
}

// cancelTask asks the worker to end a task whose time is over.
func (b *Broker) cancelTask(a attempt) {
	b.mu.Lock()
	s := b.sessions[a.serial]
	b.mu.Unlock()
	if s != nil {
		s.send(&workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Cancel{Cancel: a.proto()}})
	}
}

func (l *link) send(frame *workerv1.ExchangeRequest) {
	select {
	case l.frames <- frame:
	case <-l.done:
	}
}

// send hands a frame to the link of the moment, or drops it when there is none.
func (s *session) send(frame *workerv1.ExchangeRequest) {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l != nil {
		l.send(frame)
	}
}

func (s *session) setLink(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = l
	if l != nil {
		close(s.up)
	} else {
		s.up = make(chan struct{})
	}
}

func (s *session) awaitUp(ctx context.Context) error {
	for {
		s.mu.Lock()
		up, connected := s.up, s.link != nil
		s.mu.Unlock()
		if connected {
			return nil
		}
		select {
		case <-up:
		case <-s.ended:
			return errDetached
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
