package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// revive starts the worker again, at p's pace, until it is healthy. It returns
// an error when ctx ends, the worker cannot be healthy, or it is not to be kept.
// why is what ended it.
func (s *Supervisor) revive(ctx context.Context, w worker.Worker, p *pace, why string) error {
	if p.count > 0 { // it was started again, and has ended again
		s.tried(ctx, w, p.count, "")
	}
	for p.count < p.restarts {
		if sleep(ctx, p.delay()); ctx.Err() != nil {
			return ctx.Err() // a try that was not begun is none
		}
		err := s.inTurn(ctx, w)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, worker.ErrCorrupt):
			return s.fail(ctx, w, err)
		case !errors.Is(err, worker.ErrUnavailable) && !isOfDisk(err):
			p.count++ // a launcher that is away, or a full disk, is not the worker's failure
		}
		if err == nil {
			return s.note(ctx, w, worker.StateLive, record.WorkerRestarted, "")
		}
		why = err.Error()
		s.tried(ctx, w, p.count, why)
		s.Changed(w.Serial)
		s.Logger.Warn("worker did not come back; trying again", "worker", w.Name, "serial", w.Serial, "error", err)
	}
	return s.fail(ctx, w, fmt.Errorf("%d restarts without %s of health: %s", p.count, p.healthy, why))
}

// tried writes down how many restarts since the worker was healthy have failed or
// did not last, for the host that comes next, and why the last one failed, if it
// has. One over which the host itself ended is not held against the worker. Where
// that cannot be written the next host begins with fewer, which does no harm.
func (s *Supervisor) tried(ctx context.Context, w worker.Worker, count int, why string) {
	err := s.Registry.Update(ctx, func(tx *registry.Tx) error {
		row, err := tx.Worker(w.Serial)
		if err != nil || row.State != worker.StateLive && row.State != worker.StateRestarting {
			return err // it is not to be kept any more
		}
		if row.RestartTries = count; why != "" {
			row.StateReason = record.Text(why)
		}
		return tx.UpdateWorker(row)
	})
	if err != nil && ctx.Err() == nil {
		s.Logger.Warn("restarts are not counted for the next host", "worker", w.Name, "serial", w.Serial, "error", err)
	}
}

// isOfDisk says whether it is the disk that an attempt failed for.
func isOfDisk(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO},
		func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// inTurn restarts the worker when few enough others are being restarted.
func (s *Supervisor) inTurn(ctx context.Context, w worker.Worker) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()
	return s.restart(ctx, w)
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
	return s.awaitUp(ctx, w, began)
}

// fail ends a worker that cannot be healthy: it is stopped and stays so, and what
// it said last stands with the reason. It returns why, or what kept it from being
// written down.
func (s *Supervisor) fail(ctx context.Context, w worker.Worker, why error) error {
	err := s.insist(ctx, w, "stop failed worker", func() error { return s.Launcher.Stop(ctx, w.Serial, stopGrace) })
	if err != nil {
		return err
	}
	why = fmt.Errorf("%w%s", why, s.LastWords(w.Serial))
	if err := s.note(ctx, w, worker.StateFailed, record.WorkerFailed, why.Error()); err != nil {
		return err
	}
	return why
}

// errNotKept says that a worker is neither live nor restarting: what it is now,
// somebody else has made it.
var errNotKept = fmt.Errorf("it is neither live nor restarting: %w", worker.ErrConflict)

// note turns the worker's state and records why, in one transaction, once that
// can be written. It is errNotKept if the worker is not to be kept any more.
func (s *Supervisor) note(ctx context.Context, w worker.Worker, to worker.State, kind record.Kind, why string) error {
	entry, err := record.Entry{At: time.Now(), Kind: kind, Worker: record.NameOf(w), Reason: why}.Encode()
	if err != nil {
		return err
	}
	err = s.insist(ctx, w, "record worker's state", func() error {
		return s.Registry.Update(ctx, func(tx *registry.Tx) error { return turn(tx, w.Serial, to, record.Text(why), entry) })
	})
	if err == nil {
		s.Changed(w.Serial)
	}
	return err
}

func turn(tx *registry.Tx, serial worker.Serial, to worker.State, why string, entry []byte) error {
	row, err := tx.Worker(serial)
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return errNotKept
	case err != nil:
		return err
	case row.State != worker.StateLive && row.State != worker.StateRestarting:
		return errNotKept
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
}

// insist does what must be done until it is, ctx ends, or the worker turns out
// not to be kept any more.
func (s *Supervisor) insist(ctx context.Context, w worker.Worker, what string, do func() error) error {
	for logged := false; ; logged = true {
		err := do()
		if err == nil || errors.Is(err, errNotKept) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !logged {
			s.Logger.Error("trying until it works", "step", what, "worker", w.Name, "serial", w.Serial, "error", err)
		}
		sleep(ctx, s.pause)
	}
}
