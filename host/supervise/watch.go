package supervise

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// untilGone waits until the worker has ended or is lost, and says why. Of one that
// is on trial it is written down when it has become healthy.
func (s *Supervisor) untilGone(ctx context.Context, w worker.Worker, onTrial bool) string {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	gone := make(chan string, 2)
	watching.Go(func() { s.watchExit(ctx, w, gone) })
	watching.Go(func() { s.watchPulse(ctx, w, gone) })
	var healthy <-chan time.Time
	if onTrial {
		healthy = time.After(s.healthy)
	}
	for {
		select {
		case why := <-gone:
			return why
		case <-healthy:
			s.tried(ctx, w, 0, "")
			s.Changed(w.Serial)
		case <-ctx.Done():
			return ""
		}
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
		}
		// The launcher itself is away: that says nothing about the worker.
		sleep(ctx, s.pause)
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

// awaitUp waits for the first heartbeat of a worker that was just started. One
// that ends before it is not waited for.
func (s *Supervisor) awaitUp(ctx context.Context, w worker.Worker, began time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	exited := make(chan string, 1)
	watching.Go(func() {
		defer cancel()
		s.watchExit(ctx, w, exited)
	})
	err := s.Pulse.AwaitHeartbeat(ctx, w.Serial, began)
	if err == nil || errors.Is(err, worker.ErrCorrupt) {
		return err
	}
	select {
	case why := <-exited:
		return fmt.Errorf("it ended before its first heartbeat: %s", why)
	default:
		return err
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
