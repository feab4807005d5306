// Package supervise keeps live workers alive.
//
// For each it keeps, one goroutine waits for its end: the launcher saw it
// exit, or it is lost: two heartbeats missed and a ping failed. Then the worker
// is started again, but never beside itself: Stop has to prove the first one
// gone before Start. Losses and returns are entries of the record.
//
// A worker whose manifest or vault no longer holds is not started over and
// over: it becomes failed, with the part that failed as its reason.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
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

// Config is what a Supervisor needs.
type Config struct {
	Launcher launch.Launcher
	Registry *registry.Registry
	Pulse    Pulse
	// Spec says how to run a worker, from what its row says.
	Spec     func(w worker.Worker) launch.Spec
	Interval time.Duration // between two heartbeats
	// Changed hears of a worker whose row has changed.
	Changed func(worker.Serial)
	Logger  hclog.Logger
}

// Supervisor keeps workers alive. It is safe for concurrent use.
type Supervisor struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

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
)

// New makes a Supervisor that keeps nothing yet.
func New(c Config) *Supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	return &Supervisor{Config: c, ctx: ctx, cancel: cancel, kept: map[worker.Serial]*keeping{}}
}

// Close lets go of all workers and leaves them as they are.
func (s *Supervisor) Close() {
	s.cancel()
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
		defer cancel()
		s.keep(ctx, w)
	})
}

// Release gives a worker up; when it returns, nothing acts on the worker any
// more.
func (s *Supervisor) Release(serial worker.Serial) {
	s.mu.Lock()
	k := s.kept[serial]
	delete(s.kept, serial)
	s.mu.Unlock()
	if k != nil {
		k.cancel()
		<-k.ended
	}
}

// keep is one worker's life under supervision. A worker that an earlier host
// left in the middle of a restart is restarted first.
func (s *Supervisor) keep(ctx context.Context, w worker.Worker) {
	for {
		why := "the host ended while it was being restarted"
		if w.State != worker.StateRestarting {
			why = s.untilGone(ctx, w)
		}
		w.State = worker.StateLive
		if ctx.Err() != nil {
			return
		}
		s.Logger.Warn("worker lost", "worker", w.Name, "serial", w.Serial, "reason", why)
		if err := s.note(ctx, w, worker.StateRestarting, record.WorkerLost, why); err != nil {
			s.Logger.Error("worker loss not recorded", "serial", w.Serial, "error", err)
		}
		if err := s.revive(ctx, w); err != nil {
			if ctx.Err() == nil {
				s.Logger.Error("worker not started again", "worker", w.Name, "serial", w.Serial, "error", err)
			}
			return
		}
		s.Logger.Info("worker started again", "worker", w.Name, "serial", w.Serial)
	}
}

// untilGone waits until the worker has ended or is lost, and says why.
func (s *Supervisor) untilGone(ctx context.Context, w worker.Worker) string {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	gone := make(chan string, 2)
	watching.Go(func() { s.watchExit(ctx, w, gone) })
	watching.Go(func() { s.watchPulse(ctx, w, gone) })
	select {
	case why := <-gone:
		return why
	case <-ctx.Done():
		return ""
	}
}

func (s *Supervisor) watchExit(ctx context.Context, w worker.Worker, gone chan<- string) {
	for ctx.Err() == nil {
		exit, err := s.Launcher.Wait(ctx, w.Serial)
		switch {
		case err == nil:
			gone <- exit.String()
			return
		case errors.Is(err, worker.ErrNotFound):
			gone <- "the launcher does not know it"
			return
		case errors.Is(err, worker.ErrConflict):
			gone <- "it was never started"
			return
		}
		// The launcher itself is away: that says nothing about the worker.
		sleep(ctx, time.Second)
	}
}

func (s *Supervisor) watchPulse(ctx context.Context, w worker.Worker, gone chan<- string) {
	since := time.Now()
	ticker := time.NewTicker(s.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		missed := s.Pulse.Missed(w.Serial, since)
		if missed < missedMax {
			continue
		}
		ping, cancel := context.WithTimeout(ctx, pingTimeout)
		err := s.Pulse.Ping(ping, w.Serial)
		cancel()
		if err != nil && ctx.Err() == nil {
			gone <- fmt.Sprintf("%d heartbeats missed and a ping not answered", missed)
			return
		}
	}
}

// revive starts the worker again until it is healthy. It returns an error when
// ctx ends or the worker can never be healthy.
func (s *Supervisor) revive(ctx context.Context, w worker.Worker) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := s.restart(ctx, w)
		if errors.Is(err, worker.ErrCorrupt) {
			return struct{}{}, backoff.Permanent(err)
		}
		if err != nil && ctx.Err() == nil {
			s.Logger.Warn("worker did not come back; trying again", "worker", w.Name, "serial", w.Serial, "error", err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(0))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return errors.Join(err, s.fail(ctx, w, err))
	}
	return s.note(ctx, w, worker.StateLive, record.WorkerRestarted, "")
}

// restart runs the worker once more, after proof that it does not run.
func (s *Supervisor) restart(ctx context.Context, w worker.Worker) error {
	if err := s.Launcher.Stop(ctx, w.Serial, stopGrace); err != nil {
		return fmt.Errorf("prove end: %w", err)
	}
	spec := s.Spec(w)
	if _, err := s.Launcher.Prepare(ctx, spec.Image); err != nil {
		return fmt.Errorf("prepare image: %w", err)
	}
	if err := s.Launcher.Create(ctx, spec); err != nil && !errors.Is(err, worker.ErrConflict) {
		return fmt.Errorf("create: %w", err)
	}
	began := time.Now()
	if err := s.Launcher.Start(ctx, w.Serial); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	up, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return s.Pulse.AwaitHeartbeat(up, w.Serial, began)
}

// note turns the worker's state and records why, in one transaction.
func (s *Supervisor) note(ctx context.Context, w worker.Worker, to worker.State, kind record.Kind, why string) error {
	entry, err := record.Entry{At: time.Now(), Kind: kind, Worker: record.FieldsOf(w), Reason: why}.Encode()
	if err != nil {
		return err
	}
	err = s.Registry.Update(ctx, func(tx *registry.Tx) error {
		row, err := tx.Worker(w.Serial)
		if err != nil {
			return err
		}
		row.State, row.StateReason = to, why
		if to == worker.StateLive {
			row.Restarts++
		}
		if err := tx.UpdateWorker(row); err != nil {
			return err
		}
		_, err = tx.Append(entry)
		return err
	})
	if err == nil {
		s.Changed(w.Serial)
	}
	return err
}

// fail ends a worker that cannot be healthy: it is stopped and stays so.
func (s *Supervisor) fail(ctx context.Context, w worker.Worker, why error) error {
	if err := s.Launcher.Stop(ctx, w.Serial, stopGrace); err != nil {
		return fmt.Errorf("stop failed worker: %w", err)
	}
	return s.note(ctx, w, worker.StateFailed, record.WorkerFailed, why.Error())
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
