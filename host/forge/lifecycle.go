package forge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// DefaultGrace is what a worker gets to finish what it does and to end, before
// SIGKILL, when its caller names no time.
const DefaultGrace = 10 * time.Second

// MaxWait is the longest grace or timeout that a caller may ask for: what is under
// way holds up whoever wants something of the same worker.
const MaxWait = time.Hour

// CheckWait refuses a grace or a timeout that is longer than MaxWait. what is its
// name.
func CheckWait(what string, d time.Duration) error {
	if d <= MaxWait {
		return nil
	}
	return worker.Hint(fmt.Errorf("%s of %s, at most %s: %w", what, d, MaxWait, worker.ErrInvalid), "give a shorter --"+what)
}

func graceOr(grace time.Duration) time.Duration {
	if grace > 0 {
		return grace
	}
	return DefaultGrace
}

// Stop ends a worker's process and keeps the worker, which stays stopped until
// Start, whatever happens to the host. What it finishes within the grace still
// counts. Stopping a stopped worker changes nothing. When ctx ends after the stop
// has begun it goes through all the same.
func (f *Forge) Stop(ctx context.Context, serial worker.Serial, grace time.Duration) (worker.Worker, error) {
	if err := CheckWait("grace", grace); err != nil {
		return worker.Worker{}, err
	}
	w, done, err := f.hold(ctx, serial)
	if err != nil {
		return w, err
	}
	defer done()
	ctx = context.WithoutCancel(ctx)
	if w.State != worker.StateStopped {
		// First of all: whatever happens from here on, it stays stopped.
		if w, err = f.turnTo(ctx, w, worker.StateStopped, record.WorkerStopped, ""); err != nil {
			return w, err
		}
	}
	f.Keeper.Release(serial)
	if err = f.halt(ctx, w, graceOr(grace)); err != nil {
		return w, worker.Hint(fmt.Errorf("%w; worker %s stays stopped, and the host goes on trying to end it", err, w.Name),
			hintOr(err, "see with dals-host doctor whether the launcher is well"))
	}
	return w, nil
}

// Start runs a worker that is stopped or failed and returns once it is live. One
// that does not become healthy in time, or before ctx ends, is ended again and
// stays what it was. Starting a live worker changes nothing.
func (f *Forge) Start(ctx context.Context, serial worker.Serial, timeout time.Duration) (worker.Worker, error) {
	if err := CheckWait("timeout", timeout); err != nil {
		return worker.Worker{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, Request{Timeout: timeout}.timeout())
	defer cancel()
	w, done, err := f.hold(ctx, serial)
	if err != nil {
		return w, err
	}
	defer done()
	switch w.State {
	case worker.StateLive:
		return w, nil
	case worker.StateRestarting:
		return w, worker.Hint(fmt.Errorf("worker %s is being restarted: %w", w.Name, worker.ErrConflict),
			"wait, or run dals-host restart "+w.Name+" to do it at once")
	}
	return f.startStopped(ctx, w)
}

func (f *Forge) startStopped(ctx context.Context, w worker.Worker) (worker.Worker, error) {
	f.Keeper.Release(w.Serial) // it may still be on its way to letting go
	if err := f.bringUp(ctx, w); err != nil {
		return w, worker.Hint(fmt.Errorf("%w; it stays %s", err, w.State), hintOr(err, "read its log: dals-host logs "+w.Name))
	}
	return f.goLive(ctx, w, record.WorkerStarted, "")
}

// Restart ends a worker and runs it again, whatever it was before. When ctx ends
// after it has begun it goes through all the same. A worker that was live and
// does not come back stays the Keeper's, which goes on trying.
func (f *Forge) Restart(ctx context.Context, serial worker.Serial, grace, timeout time.Duration) (worker.Worker, error) {
	if err := errors.Join(CheckWait("grace", grace), CheckWait("timeout", timeout)); err != nil {
		return worker.Worker{}, err
	}
	w, done, err := f.hold(ctx, serial)
	if err != nil {
		return w, err
	}
	defer done()
	ctx = context.WithoutCancel(ctx)
	within := Request{Timeout: timeout}.timeout()
	if w.State == worker.StateStopped || w.State == worker.StateFailed {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return f.startStopped(ctx, w)
	}
	f.Keeper.Release(serial) // first: it must not find the worker restarting, and fail it
	restarting, err := f.turnTo(ctx, w, worker.StateRestarting, "", "somebody asked for it")
	if err != nil {
		f.Keeper.Keep(w)
		return w, err
	}
	w = restarting
	if err = f.restart(ctx, w, graceOr(grace), within); err == nil {
		var live worker.Worker
		if live, err = f.goLive(ctx, w, record.WorkerRestarted, "somebody asked for it"); err == nil {
			return live, nil
		}
	}
	w.StateReason = err.Error()
	f.keepRestarting(w)
	return w, worker.Hint(fmt.Errorf("%w; the host goes on trying", err), hintOr(err, "read its log: dals-host logs "+w.Name))
}

// restart ends a worker and brings it up. Its session stays: what the worker has
// done meanwhile it offers again.
func (f *Forge) restart(ctx context.Context, w worker.Worker, grace, within time.Duration) error {
	ending, cancel := context.WithTimeout(ctx, grace+stopLimit)
	defer cancel()
	if err := f.stopWorker(ending, w.Serial, grace); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	ctx, cancel = context.WithTimeout(ctx, within)
	defer cancel()
	return f.bringUp(ctx, w)
}

func hintOr(err error, hint string) string {
	if own := worker.HintOf(err); own != "" {
		return own
	}
	return hint
}

// hold takes the turn of a worker that exists, and reads what it is now. What is
// left of an upgrade that could not be undone is undone first.
func (f *Forge) hold(ctx context.Context, serial worker.Serial) (w worker.Worker, done func(), err error) {
	if w, err = f.Registry.Worker(ctx, serial); err != nil {
		return w, nil, err
	}
	if done, err = f.take(ctx, w.Name); err != nil {
		return w, nil, err
	}
	if w, err = f.Registry.Worker(ctx, serial); err == nil && w.State == worker.StateUpgrading {
		w, err = f.rollBack(ctx, w)
	}
	if err == nil {
		err = exists(w)
	}
	if err != nil {
		done()
	}
	return w, done, err
}

// exists refuses a worker that is not there yet, or no more.
func exists(w worker.Worker) error {
	switch w.State {
	case worker.StateForging:
		return worker.Hint(fmt.Errorf("worker %s was never finished: %w", w.Name, worker.ErrConflict), "the host removes it by itself")
	case worker.StateRetiring, worker.StateRetired:
		return worker.Hint(fmt.Errorf("worker %s is %s: %w", w.Name, w.State, worker.ErrConflict), "run dals-host workers to see those that live")
	}
	return nil
}

// halt ends what runs of a worker, and then its session.
func (f *Forge) halt(ctx context.Context, w worker.Worker, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace+stopLimit)
	defer cancel()
	if err := f.stopWorker(ctx, w.Serial, grace); err != nil {
		f.leave()
		return fmt.Errorf("stop: %w", err)
	}
	f.Sessions.Detach(ctx, w.Serial)
	return nil
}

// bringUp runs a worker until its first heartbeat. One that does not come so far
// is ended again.
func (f *Forge) bringUp(ctx context.Context, w worker.Worker) error {
	patient, cancel := until(ctx, f.work.over)
	defer cancel()
	err := f.runAgain(patient, w)
	if err != nil {
		err = errors.Join(because(patient, err), f.halt(context.WithoutCancel(ctx), w, 0))
	}
	return err
}

// runAgain runs a worker once more, after proof that it does not run.
func (f *Forge) runAgain(ctx context.Context, w worker.Worker) error {
	if err := f.Launcher.Stop(ctx, w.Serial, 0); err != nil {
		return fmt.Errorf("prove end: %w", err)
	}
	spec := f.Spec(w)
	if _, err := f.Launcher.Prepare(ctx, spec.Image); err != nil {
		return fmt.Errorf("prepare image: %w", err)
	}
	if err := f.Launcher.Create(ctx, spec); err != nil && !errors.Is(err, worker.ErrConflict) {
		return fmt.Errorf("create container: %w", err)
	}
	began, said := time.Now(), f.logSize(w.Serial)
	if err := f.Launcher.Start(ctx, w.Serial); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := f.awaitUp(ctx, w, began, said); err != nil {
		return fmt.Errorf("await heartbeat: %w", err)
	}
	return nil
}

// goLive makes a worker that has been brought up live, and kept. One of which
// that cannot be recorded does not go on running.
func (f *Forge) goLive(ctx context.Context, w worker.Worker, kind record.Kind, why string) (worker.Worker, error) {
	ctx = context.WithoutCancel(ctx)
	live, err := f.turnTo(ctx, w, worker.StateLive, kind, why)
	if err != nil {
		return w, errors.Join(err, f.halt(ctx, w, 0))
	}
	f.Keeper.Keep(live)
	return live, nil
}

// turnTo changes a worker's state, and appends the entry that tells of it if
// there is to be one, in one transaction. why is the entry's reason, and the
// state's unless the worker is live.
func (f *Forge) turnTo(ctx context.Context, w worker.Worker, to worker.State, kind record.Kind, why string) (worker.Worker, error) {
	var entry []byte
	var err error
	if kind != "" {
		if entry, err = (record.Entry{At: time.Now(), Kind: kind, Worker: record.NameOf(w), Reason: why}).Encode(); err != nil {
			return w, err
		}
	}
	err = f.Registry.Update(ctx, func(tx *registry.Tx) error {
		now, err := tx.Worker(w.Serial)
		if err != nil {
			return err
		}
		w = now
		w.State, w.StateReason, w.RestartTries = to, "", 0 // whoever asks for it lets the worker begin anew
		if to != worker.StateLive {
			w.StateReason = record.Text(why)
		}
		if kind == record.WorkerRestarted {
			w.Restarts++
		}
		if err = tx.UpdateWorker(w); err == nil && entry != nil {
			_, err = tx.Append(entry)
		}
		return err
	})
	if err != nil {
		return w, notRecorded(w, to, err)
	}
	f.Changed(w.Serial)
	return w, nil
}

// notRecorded says what could not be written into the registry.
func notRecorded(w worker.Worker, to worker.State, err error) error {
	return worker.Hint(fmt.Errorf("record that worker %s is %s: %w", w.Name, to, err),
		hintOr(err, "run dals-host doctor: it says what is wrong with the data folder"))
}
