package forge

import (
	"context"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// portQuarantine is how long a retired worker's port is given to nobody: who
// still calls the old worker must not reach a new one.
const portQuarantine = 10 * time.Minute

// stopLimit bounds how long a launcher may take, beyond the grace, to prove that
// a worker has ended.
const stopLimit = 30 * time.Second

// Retire ends a worker for good: container, keys and files go, the record
// stays. grace is what the worker gets to finish what it does and to end; zero means
// DefaultGrace. Retiring a retired worker changes nothing. When ctx ends after
// the retirement has begun it goes through all the same.
func (f *Forge) Retire(ctx context.Context, serial worker.Serial, grace time.Duration) (worker.Worker, error) {
	if err := CheckWait("grace", grace); err != nil {
		return worker.Worker{}, err
	}
	w, err := f.Registry.Worker(ctx, serial)
	if err != nil {
		return w, err
	}
	done, err := f.take(ctx, w.Name)
	if err != nil {
		return w, err
	}
	defer done()
	ctx = context.WithoutCancel(ctx)
	if w, err = f.Registry.Worker(ctx, serial); err != nil || w.State == worker.StateRetired {
		return w, err
	}
	if w.State == worker.StateForging {
		return w, exists(w)
	}
	if w, err = f.turnTo(ctx, w, worker.StateRetiring, "", ""); err != nil {
		return w, err
	}
	if w, err = f.finishRetire(ctx, w, graceOr(grace)); err != nil {
		f.leave()
		return w, worker.Hint(fmt.Errorf("%w; worker %s stays retiring, and the host goes on trying", err, w.Name),
			hintOr(err, "see with dals-host doctor what is wrong"))
	}
	return w, nil
}

// finishRetire removes all that a retiring worker has. Every part of it may
// have been done before. What the worker finishes within the grace still counts:
// its session ends after it.
func (f *Forge) finishRetire(ctx context.Context, w worker.Worker, grace time.Duration) (worker.Worker, error) {
	f.Keeper.Release(w.Serial)
	if err := f.end(ctx, w, grace); err != nil {
		return w, err
	}
	if err := f.Stage.Remove(w.Serial); err != nil {
		return w, fmt.Errorf("remove files: %w", err)
	}
	f.Ports.Release(w.Serial)
	now := time.Now().UTC()
	entry, err := record.Entry{At: now, Kind: record.Retire, Worker: record.NameOf(w)}.Encode()
	if err != nil {
		return w, err
	}
	err = f.Registry.Update(ctx, func(tx *registry.Tx) error {
		row, err := tx.Worker(w.Serial)
		if err != nil {
			return err
		}
		w = row
		w.State, w.RetiredAt = worker.StateRetired, now
		if err := tx.UpdateWorker(w); err != nil {
			return err
		}
		if err := tx.DeleteMeta(beforeKey(w.Serial)); err != nil {
			return err
		}
		if err := tx.QuarantinePort(w.Port, now.Add(portQuarantine)); err != nil {
			return err
		}
		_, err = tx.Append(entry)
		return err
	})
	if err != nil {
		return w, notRecorded(w, worker.StateRetired, err)
	}
	f.Changed(w.Serial)
	return w, nil
}

// end stops the worker and removes what the launcher has of it.
func (f *Forge) end(ctx context.Context, w worker.Worker, grace time.Duration) error {
	if err := f.halt(ctx, w, grace); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if err := f.Launcher.Remove(ctx, w.Serial); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}
