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

// Retire ends a worker for good: container, keys and files go, the record
// stays. grace is what the worker gets between SIGTERM and SIGKILL. Retiring a
// retired worker changes nothing.
func (f *Forge) Retire(ctx context.Context, serial worker.Serial, grace time.Duration) (worker.Worker, error) {
	var w worker.Worker
	// From here on the retirement goes through, whoever still waits for it.
	ctx = context.WithoutCancel(ctx)
	err := f.Registry.Update(ctx, func(tx *registry.Tx) (err error) {
		if w, err = tx.Worker(serial); err != nil {
			return err
		}
		if w.State == worker.StateForging {
			return worker.Hint(fmt.Errorf("worker %s is being forged: %w", w.Name, worker.ErrConflict), "try again when it is live")
		}
		if w.State == worker.StateRetired {
			return nil
		}
		w.State, w.StateReason = worker.StateRetiring, ""
		return tx.SetState(serial, w.State, w.StateReason)
	})
	if err != nil || w.State == worker.StateRetired {
		return w, err
	}
	return f.finishRetire(ctx, w, grace)
}

// finishRetire removes all that a retiring worker has. Every part of it may
// have been done before.
func (f *Forge) finishRetire(ctx context.Context, w worker.Worker, grace time.Duration) (worker.Worker, error) {
	f.Keeper.Release(w.Serial)
	f.Sessions.Detach(ctx, w.Serial)
	if err := f.Launcher.Stop(ctx, w.Serial, grace); err != nil {
		return w, fmt.Errorf("stop: %w", err)
	}
	if err := f.Launcher.Remove(ctx, w.Serial); err != nil {
		return w, fmt.Errorf("remove container: %w", err)
	}
	if err := f.Stage.Remove(w.Serial); err != nil {
		return w, fmt.Errorf("remove files: %w", err)
	}
	f.Ports.Release(w.Serial)
	w.State, w.RetiredAt = worker.StateRetired, time.Now().UTC()
	entry, err := record.Entry{At: w.RetiredAt, Kind: record.Retire, Worker: record.FieldsOf(w)}.Encode()
	if err != nil {
		return w, err
	}
	err = f.Registry.Update(ctx, func(tx *registry.Tx) error {
		row, err := tx.Worker(w.Serial)
		if err != nil || row.State == worker.StateRetired {
			return err
		}
		if err := tx.UpdateWorker(w); err != nil {
			return err
		}
		if err := tx.QuarantinePort(w.Port, w.RetiredAt.Add(portQuarantine)); err != nil {
			return err
		}
		_, err = tx.Append(entry)
		return err
	})
	if err != nil {
		return w, fmt.Errorf("record: %w", err)
	}
	return w, nil
}
