package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// Create writes the worker's record.
func (l *Launcher) Create(ctx context.Context, spec launch.Spec) error {
	if err := check(spec); err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	done, err := l.take(ctx, spec.Serial)
	if err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	defer done()
	if _, ok := l.get(spec.Serial); ok {
		return fmt.Errorf("create %s: it exists: %w", spec.Serial, worker.ErrConflict)
	}
	rec := record{Spec: spec}
	if err := rec.save(l.dir); err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	l.put(entry{rec: rec})
	return nil
}

func check(spec launch.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if host := os.Geteuid(); host != 0 && spec.UID != host {
		return fmt.Errorf("uid %d, but the host may only use its own, %d: %w", spec.UID, host, worker.ErrInvalid)
	}
	return nil
}

// Start runs the worker's binary. When it returns without error the run is on
// record.
func (l *Launcher) Start(ctx context.Context, serial worker.Serial) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("start %s: %w", serial, err)
	}
	defer done()
	e, ok := l.get(serial)
	if !ok {
		return fmt.Errorf("start %s: %w", serial, worker.ErrNotFound)
	}
	if e.rec.Run != nil {
		return fmt.Errorf("start %s: its last run is not settled by a stop: %w", serial, worker.ErrConflict)
	}
	if err := l.start(ctx, e.rec); err != nil {
		return fmt.Errorf("start %s: %w", serial, err)
	}
	return nil
}

func (l *Launcher) start(ctx context.Context, rec record) error {
	lock, err := takeLock(ctx, l.lockPath(rec.Spec.Serial))
	if err != nil {
		return err
	}
	defer lock.Close() // the worker's own copy keeps it locked
	left, err := l.members(rec.Spec)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("processes %v of an earlier run are left: %w", left, worker.ErrConflict)
	}
	failpoint.Hit("process", "spawn", "before")
	proc, err := spawn(rec.Spec, lock, l.mark(rec.Spec.Serial))
	if err != nil {
		return err
	}
	failpoint.Hit("process", "spawn", "after")
	id := proc.Identity()
	rec.Run, rec.Exit = &id, nil
	if err := rec.save(l.dir); err != nil {
		return errors.Join(err, discard(proc))
	}
	l.watch(rec, proc)
	return nil
}

// Wait blocks while the worker runs. The end of a worker that an earlier host
// started is seen, but its exit code is not: such an Exit is Unknown.
func (l *Launcher) Wait(ctx context.Context, serial worker.Serial) (launch.Exit, error) {
	e, ok := l.get(serial)
	if !ok {
		return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, worker.ErrNotFound)
	}
	if e.run == nil {
		return e.rec.exit(), nil
	}
	select {
	case <-e.run.ended:
		return e.run.exit, nil
	case <-ctx.Done():
		return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, ctx.Err())
	case <-l.closing:
		return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, errClosed)
	}
}

// Stop ends the worker and every process that it left behind.
func (l *Launcher) Stop(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("stop %s: %w", serial, err)
	}
	defer done()
	e, ok := l.get(serial)
	if !ok {
		return nil
	}
	if err := l.settle(ctx, e, grace); err != nil {
		return fmt.Errorf("stop %s: %w", serial, err)
	}
	return nil
}

// settle proves that the worker's last run is over and writes down its end.
func (l *Launcher) settle(ctx context.Context, e entry, grace time.Duration) error {
	if e.run != nil {
		if err := e.run.end(ctx, grace); err != nil {
			return err
		}
	}
	if err := l.clear(ctx, e.rec.Spec); err != nil {
		return err
	}
	if e.rec.Run == nil {
		return nil
	}
	exit := launch.Exit{Unknown: true}
	if e.run != nil {
		exit = e.run.exit
	}
	e.rec.Run, e.rec.Exit = nil, &exit
	if err := e.rec.save(l.dir); err != nil {
		return err
	}
	l.put(entry{rec: e.rec})
	return nil
}

// Remove ends the worker and deletes its record.
func (l *Launcher) Remove(ctx context.Context, serial worker.Serial) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	defer done()
	e, ok := l.get(serial)
	if !ok {
		return nil
	}
	if err := l.settle(ctx, e, 0); err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	// The record goes last: while it is there, a repeated Remove finds the lock.
	for _, path := range []string{l.lockPath(serial), recordPath(l.dir, serial)} {
		failpoint.Hit("process", "remove", "before")
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", serial, err)
		}
		failpoint.Hit("process", "remove", "after")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.workers, serial)
	return nil
}

// Warm has nothing to do: a process is made by being started.
func (l *Launcher) Warm(context.Context, launch.Spec) error {
	return fmt.Errorf("keep a process warm: %w", errors.ErrUnsupported)
}
