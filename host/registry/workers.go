package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// Filter picks workers; an empty field picks all.
type Filter struct {
	Type           string
	State          worker.State
	IncludeRetired bool // implied by the state retired
}

// InsertWorker adds a worker. A serial, ledger code, or (among workers that are
// not retired) name, port above 0 or uid of a worker's own that is taken is
// worker.ErrConflict and is named in the message. A uid is a worker's own when
// AllocateUID gave it.
func (tx *Tx) InsertWorker(w worker.Worker) error {
	return tx.do("insert worker "+w.Name, func() error {
		own, err := tx.q.UIDInUse(tx.ctx, w.UID)
		if err != nil {
			return err
		}
		return tx.q.InsertWorker(tx.ctx, sqlcgen.InsertWorkerParams{
			Serial: w.Serial, Name: w.Name, Type: w.Type, TypeVersion: w.TypeVersion, PluginDigest: w.PluginDigest,
			ClassCode: w.ClassCode, ModelNumber: w.Model, LedgerCode: w.LedgerCode, Port: w.Port, Uid: w.UID, OwnUid: own != 0,
			State: w.State, StateReason: w.StateReason, Launcher: w.Launcher, PublicKey: present(w.PublicKey), Glyph: w.Glyph,
			ManifestSha256: w.ManifestSHA256, ImageDigest: w.ImageDigest, Config: present(w.Config),
			RequestSha256: w.RequestSHA256, Restarts: w.Restarts, CreatedAt: millis(w.CreatedAt), RetiredAt: millis(w.RetiredAt),
			Grants:      strings.Join(w.Grants, " "),
			MemoryBytes: w.Limits.MemoryBytes, CpuMillis: w.Limits.CPUMillis, Pids: w.Limits.PIDs,
			RestartTries: w.RestartTries,
		})
	})
}

// UpdateWorker writes all fields of the worker with w's serial. A retired worker
// stays retired: anything else is worker.ErrConflict, as is what InsertWorker
// would refuse. The uid of a worker that retires becomes free.
func (tx *Tx) UpdateWorker(w worker.Worker) error {
	return tx.do(fmt.Sprintf("update worker %s", w.Serial), func() error {
		was, err := tx.q.WorkerBySerial(tx.ctx, w.Serial)
		if err != nil {
			return err
		}
		if was.State == worker.StateRetired && w.State != worker.StateRetired {
			return fmt.Errorf("it is retired: %w", worker.ErrConflict)
		}
		if w.State == worker.StateRetired {
			if err := tx.freeUID(w.Serial); err != nil {
				return err
			}
		}
		return tx.q.UpdateWorker(tx.ctx, sqlcgen.UpdateWorkerParams{
			Serial: w.Serial, Name: w.Name, Type: w.Type, TypeVersion: w.TypeVersion, PluginDigest: w.PluginDigest,
			ClassCode: w.ClassCode, ModelNumber: w.Model, LedgerCode: w.LedgerCode, Port: w.Port, Uid: w.UID,
			State: w.State, StateReason: w.StateReason, Launcher: w.Launcher, PublicKey: present(w.PublicKey), Glyph: w.Glyph,
			ManifestSha256: w.ManifestSHA256, ImageDigest: w.ImageDigest, Config: present(w.Config),
			RequestSha256: w.RequestSHA256, Restarts: w.Restarts, CreatedAt: millis(w.CreatedAt), RetiredAt: millis(w.RetiredAt),
			Grants:      strings.Join(w.Grants, " "),
			MemoryBytes: w.Limits.MemoryBytes, CpuMillis: w.Limits.CPUMillis, Pids: w.Limits.PIDs,
			RestartTries: w.RestartTries,
		})
	})
}

// SetState moves a worker to a state and says why. A worker that retires is
// retired as of now. See UpdateWorker.
func (tx *Tx) SetState(serial worker.Serial, state worker.State, reason string) error {
	w, err := tx.Worker(serial)
	if err != nil {
		return err
	}
	if state == worker.StateRetired && w.State != worker.StateRetired {
		w.RetiredAt = time.Now()
	}
	w.State, w.StateReason = state, reason
	return tx.UpdateWorker(w)
}

// DeleteWorker removes a worker as if it had never been, but for its numbers:
// those are not given again. Its uid and port become free. No such worker is
// no error.
func (tx *Tx) DeleteWorker(serial worker.Serial) error {
	return tx.do(fmt.Sprintf("delete worker %s", serial), func() error {
		if err := tx.freeUID(serial); err != nil {
			return err
		}
		return tx.q.DeleteWorker(tx.ctx, serial)
	})
}

// Worker is the worker with that serial, or worker.ErrNotFound.
func (tx *Tx) Worker(serial worker.Serial) (w worker.Worker, err error) {
	err = tx.do(fmt.Sprintf("read worker %s", serial), func() error {
		row, err := tx.q.WorkerBySerial(tx.ctx, serial)
		w = workerOf(row)
		return err
	})
	return w, err
}

// WorkerByName is the worker of that name that is not retired, or
// worker.ErrNotFound.
func (tx *Tx) WorkerByName(name string) (w worker.Worker, err error) {
	err = tx.do("read worker "+name, func() error {
		row, err := tx.q.WorkerByName(tx.ctx, name)
		w = workerOf(row)
		return err
	})
	return w, err
}

// Worker is the worker with that serial, or worker.ErrNotFound.
func (r *Registry) Worker(ctx context.Context, serial worker.Serial) (worker.Worker, error) {
	row, err := r.read.WorkerBySerial(ctx, serial)
	if err != nil {
		return worker.Worker{}, fmt.Errorf("read worker %s: %w", serial, fault(err))
	}
	return workerOf(row), nil
}

// WorkerByName is the worker of that name: the one that is not retired, or else
// the one that retired last. No such worker is worker.ErrNotFound.
func (r *Registry) WorkerByName(ctx context.Context, name string) (worker.Worker, error) {
	row, err := r.read.WorkerByName(ctx, name)
	if errors.Is(fault(err), worker.ErrNotFound) {
		row, err = r.read.NewestRetiredByName(ctx, name)
	}
	if err != nil {
		return worker.Worker{}, fmt.Errorf("read worker %s: %w", name, fault(err))
	}
	return workerOf(row), nil
}

// Workers lists the workers that f picks, oldest first.
func (r *Registry) Workers(ctx context.Context, f Filter) ([]worker.Worker, error) {
	read := r.read.WorkersNotRetired
	if f.IncludeRetired || f.State == worker.StateRetired {
		read = r.read.AllWorkers
	}
	rows, err := read(ctx)
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", fault(err))
	}
	var list []worker.Worker
	for _, row := range rows {
		if (f.Type == "" || f.Type == row.Type) && (f.State == "" || f.State == row.State) {
			list = append(list, workerOf(row))
		}
	}
	return list, nil
}

// CountWorkers counts the workers of a type and version that are not retired;
// an empty version counts all versions.
func (r *Registry) CountWorkers(ctx context.Context, typeName, version string) (int, error) {
	n, err := r.read.CountWorkers(ctx, sqlcgen.CountWorkersParams{Type: typeName, Version: version})
	if err != nil {
		return 0, fmt.Errorf("count workers of %s: %w", typeName, fault(err))
	}
	return int(n), nil
}

func workerOf(row sqlcgen.Worker) worker.Worker {
	return worker.Worker{
		Serial: row.Serial, Name: row.Name, Type: row.Type, TypeVersion: row.TypeVersion, PluginDigest: row.PluginDigest,
		ClassCode: row.ClassCode, Model: row.ModelNumber, LedgerCode: row.LedgerCode, Port: row.Port, UID: row.Uid,
		State: row.State, StateReason: row.StateReason, Launcher: row.Launcher, PublicKey: row.PublicKey, Glyph: row.Glyph,
		ManifestSHA256: row.ManifestSha256, ImageDigest: row.ImageDigest, Config: row.Config,
		RequestSHA256: row.RequestSha256, Restarts: row.Restarts, CreatedAt: instant(row.CreatedAt), RetiredAt: instant(row.RetiredAt),
		Grants:       grantsOf(row.Grants),
		Limits:       worker.Limits{MemoryBytes: row.MemoryBytes, CPUMillis: row.CpuMillis, PIDs: row.Pids},
		RestartTries: row.RestartTries,
	}
}

// grantsOf reads the column; of none it is nil.
func grantsOf(column string) []string {
	if column == "" {
		return nil
	}
	return strings.Split(column, " ")
}
