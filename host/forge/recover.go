package forge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// What could not be ended at once is tried again soon, because most often a
// containerd that has died is back by then, and after growing pauses.
const (
	settleSoon  = time.Second
	settleEvery = 30 * time.Second
)

// Recover brings every worker that an earlier host left half made, half upgraded
// or half retired to an end, and ends what still runs of those that are not to
// run. It runs before the first Forge, and frees the uids of what was kept warm. What cannot be ended now is told in the
// error and tried again by Run.
func (f *Forge) Recover(ctx context.Context) error {
	_, err := f.settleAll(ctx)
	return errors.Join(err, f.freeHeldUIDs(ctx))
}

// settleAll does what Recover does to all workers of which nobody has the turn,
// and says whether somebody had one.
func (f *Forge) settleAll(ctx context.Context) (busy bool, err error) {
	var errs []error
	for _, state := range []worker.State{worker.StateForging, worker.StateUpgrading, worker.StateRetiring} {
		open, err := f.Registry.Workers(ctx, registry.Filter{State: state})
		if err != nil {
			return false, fmt.Errorf("read workers that are %s: %w", state, err)
		}
		for _, w := range open {
			errs = append(errs, f.settle(ctx, w))
		}
	}
	errs = slices.Concat(errs, f.endStopped(ctx), f.settleAsides(ctx))
	isBusy := func(err error) bool { return errors.Is(err, errBusy) }
	return slices.ContainsFunc(errs, isBusy), errors.Join(slices.DeleteFunc(errs, isBusy)...)
}

// endStopped ends the workers that run and are not to, and settles what an
// earlier host left of their end, or of their beginning.
func (f *Forge) endStopped(ctx context.Context) (errs []error) {
	created, err := f.Launcher.List(ctx)
	if err != nil {
		return []error{fmt.Errorf("list workers: %w", err)}
	}
	for _, s := range created {
		if s.Running || s.Unsettled {
			errs = append(errs, f.inTurn(ctx, s.Serial, func(w worker.Worker) error {
				if w.State != worker.StateStopped && w.State != worker.StateFailed {
					return nil
				}
				f.Logger.Info("ending a worker that is not to run", "worker", w.Name, "serial", w.Serial, "state", w.State)
				return f.halt(ctx, w, DefaultGrace)
			}))
		}
	}
	return errs
}

// settleAsides removes the old folders that finished upgrades have left.
func (f *Forge) settleAsides(ctx context.Context) (errs []error) {
	left, err := f.Stage.Asides()
	if err != nil {
		return []error{err}
	}
	for _, serial := range left {
		errs = append(errs, f.inTurn(ctx, serial, func(w worker.Worker) error {
			if w.State == worker.StateUpgrading {
				return nil
			}
			return f.settleAside(ctx, w)
		}))
	}
	return errs
}

// settleAside removes the old folder of a worker whose folder is the one that the
// registry knows. Where the old one is, because the registry was lost in the
// middle of an upgrade, it is put back; nothing else is ever removed.
func (f *Forge) settleAside(ctx context.Context, w worker.Worker) error {
	if w.State == worker.StateRetired || isFolderOf(f.Stage.OpenRoot, w) == nil {
		return f.Stage.DropAside(w.Serial)
	}
	if err := isFolderOf(f.Stage.OpenAside, w); err != nil {
		return worker.Hint(fmt.Errorf("neither folder of worker %s, %s and the one set aside, is the one that the registry knows: %w", w.Name, f.Stage.Dir(w.Serial), err),
			"see with dals-host verify "+w.Name+" what differs; bring its folder back from a backup, or give the worker up: dals-host retire "+w.Name)
	}
	f.Logger.Warn("putting back the folder that the registry knows", "worker", w.Name, "serial", w.Serial)
	f.Keeper.Release(w.Serial)
	if err := f.end(ctx, w, 0); err != nil {
		return err
	}
	if err := f.Stage.PutBack(w.Serial, kept...); err != nil {
		return err
	}
	if w.State != worker.StateLive && w.State != worker.StateRestarting {
		return nil
	}
	w, err := f.turnTo(context.WithoutCancel(ctx), w, worker.StateRestarting, "", "its own folder was put back")
	if err == nil {
		f.keepRestarting(w)
	}
	return err
}

// expectNoAside settles what an earlier upgrade left of the worker. It is an
// error where that is more than an old folder to remove: the worker is then not
// what it seemed to be.
func (f *Forge) expectNoAside(ctx context.Context, w worker.Worker) error {
	root, err := f.Stage.OpenAside(w.Serial)
	if errors.Is(err, worker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(root.Close(), f.settleAside(ctx, w)); err != nil {
		return err
	}
	if now, err := f.Registry.Worker(ctx, w.Serial); err != nil || now.State != w.State {
		return errors.Join(err, fmt.Errorf("its old folder was put back just now: %w", worker.ErrConflict))
	}
	return nil
}

// isFolderOf says whether a folder's manifest is the one that the registry knows.
func isFolderOf(open func(worker.Serial) (*os.Root, error), w worker.Worker) error {
	root, err := open(w.Serial)
	if err != nil {
		return err
	}
	defer root.Close()
	return isManifestOf(root, w)
}

// inTurn does something about a worker as it is, if nobody else has its turn: the
// others are not to wait for that. Of one that the registry does not know nothing
// is done.
func (f *Forge) inTurn(ctx context.Context, serial worker.Serial, do func(worker.Worker) error) error {
	w, err := f.Registry.Worker(ctx, serial)
	if err == nil {
		var done func()
		if done, err = f.tryTake(w.Name); err != nil {
			return err
		}
		defer done()
		w, err = f.Registry.Worker(ctx, serial)
	}
	if errors.Is(err, worker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return do(w)
}

// Run tries again, until ctx ends or the forge is frozen, what could not be undone
// or retired.
func (f *Forge) Run(ctx context.Context) error {
	pause := settleEvery
	for {
		select {
		case <-f.left:
			pause = settleSoon
			continue
		case <-ctx.Done():
			return nil
		case <-f.work.frozen:
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, settleEvery)
		busy, err := f.settleAll(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			f.Logger.Warn("not all that was left open could be settled", "error", err)
		case busy: // whoever had the turn may have said meanwhile that something is left
			continue
		default:
			pause = settleEvery
		}
		select { // what it could not end itself is no news
		case <-f.left:
		default:
		}
	}
}

// leave has Run try again soon.
func (f *Forge) leave() {
	select {
	case f.left <- struct{}{}:
	default:
	}
}

// settle ends one open row, if it is still open: whatever is running has the turn.
func (f *Forge) settle(ctx context.Context, w worker.Worker) error {
	return f.inTurn(ctx, w.Serial, func(w worker.Worker) error {
		switch w.State {
		case worker.StateForging:
			f.Logger.Info("rolling back a forge that was left open", "worker", w.Name, "serial", w.Serial)
			j := &job{worker: w, why: errors.New("it was left open, by a host that ended or an undo that failed")}
			if err := f.undo(ctx, j, f.steps()); err != nil {
				return fmt.Errorf("roll back forge of %s: %w", w.Name, err)
			}
		case worker.StateUpgrading:
			_, err := f.rollBack(ctx, w)
			return err
		case worker.StateRetiring:
			f.Logger.Info("finishing a retirement that was left open", "worker", w.Name, "serial", w.Serial)
			if _, err := f.finishRetire(ctx, w, 0); err != nil {
				return fmt.Errorf("finish retiring %s: %w", w.Name, err)
			}
		}
		return nil
	})
}
