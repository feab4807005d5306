package forge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// settleEvery spaces the attempts to end what could not be ended at once.
const settleEvery = 30 * time.Second

// Recover brings every worker that an earlier host left half made or half
// retired to an end. It runs before the first Forge. What cannot be ended now is
// told in the error and tried again by Run.
func (f *Forge) Recover(ctx context.Context) error {
	var errs []error
	for _, state := range []worker.State{worker.StateForging, worker.StateRetiring} {
		open, err := f.Registry.Workers(ctx, registry.Filter{State: state})
		if err != nil {
			return fmt.Errorf("read workers that are %s: %w", state, err)
		}
		for _, w := range open {
			errs = append(errs, f.settle(ctx, w))
		}
	}
	return errors.Join(errs...)
}

// Run tries again, until ctx ends, what could not be undone or retired.
func (f *Forge) Run(ctx context.Context) error {
	ticker := time.NewTicker(settleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := f.Recover(ctx); err != nil && ctx.Err() == nil {
				f.Logger.Warn("not all that was left open could be settled", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// settle ends one open row, if it is still open when its turn comes: a forge
// that is running has the turn.
func (f *Forge) settle(ctx context.Context, w worker.Worker) error {
	done, err := f.take(ctx, w.Name)
	if err != nil {
		return err
	}
	defer done()
	w, err = f.Registry.Worker(ctx, w.Serial)
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return nil
	case err != nil:
		return err
	case w.State == worker.StateForging:
		f.Logger.Info("rolling back a forge that was left open", "worker", w.Name, "serial", w.Serial)
		j := &job{worker: w, why: errors.New("it was left open, by a host that ended or an undo that failed")}
		if err := f.undo(ctx, j, f.steps()); err != nil {
			return fmt.Errorf("roll back forge of %s: %w", w.Name, err)
		}
	case w.State == worker.StateRetiring:
		f.Logger.Info("finishing a retirement that was left open", "worker", w.Name, "serial", w.Serial)
		if _, err := f.finishRetire(ctx, w, 0); err != nil {
			return fmt.Errorf("finish retiring %s: %w", w.Name, err)
		}
	}
	return nil
}
