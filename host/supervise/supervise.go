// Package supervise keeps live workers alive.
//
// For each it keeps, one goroutine waits for its end: the launcher saw it
// exit, or it is lost: two heartbeats missed and a ping failed. Then the worker
// is started again, but never beside itself: Stop has to prove the first one
// gone before Start. Losses and returns are entries of the record.
//
// The first restart comes at once, later ones after growing pauses, until the
// worker was healthy for a while; the next host goes on where this one ends. A
// worker that never is becomes failed, as does one whose manifest or vault no
// longer holds, with the reason and the end of its log. What cannot be written
// down is tried until it can be, or the worker is released.
//
// The supervisor acts on workers that are live or restarting, and on no others:
// once a worker's row says something else, because somebody stops it, upgrades it
// or retires it, it lets go of it.
package supervise

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// Pulse is what is heard of workers.
type Pulse interface {
	// Missed is the number of whole heartbeat intervals without a sign of life,
	// counted from since if there was none after it.
	Missed(serial worker.Serial, since time.Time) int
	Ping(ctx context.Context, serial worker.Serial) error
	AwaitHeartbeat(ctx context.Context, serial worker.Serial, since time.Time) error
}

// Registry is where the workers' rows and the record's entries are written.
type Registry interface {
	Update(ctx context.Context, closure func(*registry.Tx) error) error
}

// Config is what a Supervisor needs.
type Config struct {
	Launcher launch.Launcher
	Registry Registry
	Pulse    Pulse
	// Spec says how to run a worker, from what its row says.
	Spec     func(w worker.Worker) launch.Spec
	Interval time.Duration // between two heartbeats
	// LastWords is the end of a worker's log, fit to stand behind a reason.
	LastWords func(worker.Serial) string
	// Changed hears of a worker whose row has changed.
	Changed func(worker.Serial)
	Logger  hclog.Logger
}

// Supervisor keeps workers alive. It is safe for concurrent use.
type Supervisor struct {
	Config
	timing
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // one is held by each restart under way

	mu   sync.Mutex
	kept map[worker.Serial]*keeping
}

type keeping struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

const (
	// pingTimeout is how long a silent worker has to answer.
	pingTimeout = 2 * time.Second
	// stopGrace is what a lost worker gets between SIGTERM and SIGKILL.
	stopGrace = 2 * time.Second
	// startTimeout bounds a start to its first heartbeat.
	startTimeout = 30 * time.Second
	// missedMax is how many heartbeats may be missed before the ping.
	missedMax = 2
	// restartsAtOnce bounds the restarts that go on at a time, over all workers.
	restartsAtOnce = 8
)

// New makes a Supervisor that keeps nothing yet.
func New(c Config) *Supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	return &Supervisor{
		Config: c, timing: defaultTiming(), ctx: ctx, cancel: cancel,
		slots: make(chan struct{}, restartsAtOnce), kept: map[worker.Serial]*keeping{},
	}
}

// Close lets go of all workers and leaves them as they are. Later calls of Keep
// do nothing.
func (s *Supervisor) Close() {
	s.mu.Lock()
	s.cancel() // with the lock held, so that no Keep begins once the waiting has
	s.mu.Unlock()
	s.wg.Wait()
}

// Keep takes over a live worker. Keeping it twice is keeping it once.
func (s *Supervisor) Keep(w worker.Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept[w.Serial] != nil || s.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	k := &keeping{cancel: cancel, ended: make(chan struct{})}
	s.kept[w.Serial] = k
	s.wg.Go(func() {
		defer close(k.ended)
		defer s.forget(w.Serial)
		defer cancel()
		s.tell(ctx, w, s.keep(ctx, w))
	})
}

func (s *Supervisor) forget(serial worker.Serial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kept, serial)
}

// tell logs why a worker is not kept any more, unless that was asked for.
func (s *Supervisor) tell(ctx context.Context, w worker.Worker, err error) {
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errNotKept):
		s.Logger.Info("worker is not kept any more", "worker", w.Name, "serial", w.Serial, "reason", err)
	default:
		s.Logger.Error("worker not started again", "worker", w.Name, "serial", w.Serial, "error", err)
	}
}

// Release gives a worker up; when it returns, nothing acts on the worker any
// more.
func (s *Supervisor) Release(serial worker.Serial) {
	s.mu.Lock()
	k := s.kept[serial]
	s.mu.Unlock()
	if k != nil {
		k.cancel()
		<-k.ended
	}
}

// handedOver begins the reason why a worker is lost that was kept in the middle of
// a restart.
const handedOver = "it was being restarted"

// keep is one worker's life under supervision, until ctx ends, it failed for
// good, or it is nobody's to keep. A worker that is handed over in the
// middle of a restart, by an earlier host or the forge, is restarted first.
func (s *Supervisor) keep(ctx context.Context, w worker.Worker) error {
	p := newPace(s.timing, w.RestartTries)
	for {
		why := handedOver
		if before := strings.TrimPrefix(strings.TrimPrefix(w.StateReason, handedOver), ": "); before != "" {
			why += ": " + before
		}
		if w.State != worker.StateRestarting {
			since := time.Now()
			why = s.untilGone(ctx, w, p.count > 0)
			p.lived(time.Since(since))
		}
		w.State = worker.StateLive
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.Logger.Warn("worker lost", "worker", w.Name, "serial", w.Serial, "reason", why)
		if err := s.note(ctx, w, worker.StateRestarting, record.WorkerLost, why); err != nil {
			return err
		}
		if err := s.revive(ctx, w, p, why); err != nil {
			return err
		}
		s.Logger.Info("worker started again", "worker", w.Name, "serial", w.Serial)
	}
}
