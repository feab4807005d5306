package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
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
	places places

	mu    sync.Mutex
	link  *link         // the streams of the moment; nil while there are none
	up    chan struct{} // closed while link is not nil
	fault string        // why the last try to connect, or the last link, ended
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

// Detach ends a worker's session and closes what it still owed. What the worker
// gave before it ended counts.
func (b *Broker) Detach(ctx context.Context, serial worker.Serial) {
	b.mu.Lock()
	s := b.sessions[serial]
	delete(b.sessions, serial)
	b.mu.Unlock()
	if s != nil {
		s.hearOut(ctx)
		s.cancel()
		<-s.ended
	}
	b.lose(ctx, b.outstanding(func(d *delivery) bool { return d.Serial == serial }),
		fmt.Errorf("worker %s was taken out of service: %w", serial, worker.ErrUnavailable))
}

// Drain waits until a worker has given all that it owed when Drain began, its
// connection has ended, or ctx has.
func (b *Broker) Drain(ctx context.Context, serial worker.Serial) {
	s := b.session(serial)
	if s == nil {
		return
	}
	l := s.current()
	if l == nil {
		return
	}
	for _, d := range b.outstanding(func(d *delivery) bool { return d.Serial == serial }) {
		select {
		case <-d.settled:
		case <-l.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// hearOut reads what a worker that has ended sent before, if it owes anything.
func (s *session) hearOut(ctx context.Context) {
	l := s.current()
	if l == nil || len(s.b.outstanding(func(d *delivery) bool { return d.Serial == s.worker.Serial })) == 0 {
		return
	}
	l.hearOut(nil, ctx.Done())
}

func (b *Broker) session(serial worker.Serial) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[serial]
}

// Dialling is eager while a worker comes up and calm while it stays away. A link
// that did not last has not earned an eager start.
const (
	firstRetry = 500 * time.Microsecond
	eager      = 20 * time.Millisecond // how long retries follow each other as closely as that
	lastRetry  = time.Second
	steady     = time.Second            // how long a link has to last
	noticeable = 100 * time.Millisecond // the retry from which on people are told
)

func (s *session) run(ctx context.Context) {
	retry, logged, began := firstRetry, "", time.Now()
	met := false // this try comes of an arrival
	for {
		lived, err := s.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if lived >= steady {
			retry, logged, began = firstRetry, "", time.Now()
		}
		fault := clean(err.Error())
		level := hclog.Debug
		if fault != logged && retry >= noticeable {
			level, logged = hclog.Info, fault
		}
		s.b.Logger.Log(level, "worker not connected", "serial", s.worker.Serial, "reason", fault)
		s.setFault(fault)
		if met || !errors.Is(err, fs.ErrNotExist) { // who makes files again and again is not met each time
			met = false
			pause(ctx, retry)
		} else {
			met = s.meet(ctx, retry)
		}
		if lived > 0 || time.Since(began) > eager {
			retry = min(retry*3/2, lastRetry)
		}
	}
}

// meet waits until something appears where the worker's socket is to be, and says whether
// it has; for about as long as retry. Looking every now and then takes time from a worker
// that comes up: with each look Go's runtime begins anew to watch over the host, ten times
// a millisecond.
func (s *session) meet(ctx context.Context, retry time.Duration) bool {
	socket := filepath.Join(s.dir, wire.Socket)
	there, leave := s.b.arrivals.await(filepath.Dir(socket))
	defer leave()
	if there == nil {
		pause(ctx, retry)
		return false
	}
	if _, err := os.Lstat(socket); err == nil {
		return true // it came before anybody watched
	}
	timer := time.NewTimer(max(retry, eager))
	defer timer.Stop()
	select {
	case <-there:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (s *session) setFault(fault string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// whyAway is why the worker is not connected, as far as is known; empty while it
// is.
func (s *session) whyAway() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.link != nil:
		return ""
	case s.fault == "":
		return "it is being connected"
	}
	return s.fault
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

func (s *session) current() *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

// connected waits for the worker's link to be up, and for no longer than wait.
func (s *session) connected(ctx context.Context, wait time.Duration) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		s.mu.Lock()
		up, l := s.up, s.link
		s.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-up:
		case <-s.ended:
			return nil, worker.Refuse(workerUnavailable, "worker %s was taken out of service", s.worker.Serial)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, worker.Refuse(workerUnavailable, "worker %s is not reachable: %s", s.worker.Serial, s.whyAway())
		}
	}
}

// cancelTask asks the worker to end a task whose time is over. It never waits:
// the worker knows the deadline itself.
func (b *Broker) cancelTask(a attempt) {
	s := b.session(a.serial)
	if s == nil {
		return
	}
	if l := s.current(); l != nil {
		select {
		case l.notes <- &workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Cancel{Cancel: a.proto()}}:
		default:
		}
	}
}
