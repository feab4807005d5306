package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
)

// run is one process of a worker that this launcher watches.
type run struct {
	proc  *pidfd.Process
	ended chan struct{} // closed when the process has ended
	exit  launch.Exit   // valid once ended is closed
}

// watch puts the worker among the known with a goroutine that sees its end.
func (l *Launcher) watch(rec record, proc *pidfd.Process) {
	r := &run{proc: proc, ended: make(chan struct{})}
	l.put(entry{rec: rec, run: r})
	l.watchers.Go(func() {
		status, known, err := proc.Wait()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			l.log.Error("worker is no longer watched", "serial", rec.Spec.Serial, "error", err)
			return
		}
		r.exit = exitOf(status, known)
		close(r.ended)
	})
}

func exitOf(status unix.WaitStatus, known bool) launch.Exit {
	switch now := time.Now(); {
	case !known:
		return launch.Exit{Unknown: true, At: now}
	case status.Signaled():
		return launch.Exit{Code: 128 + int(status.Signal()), Signal: unix.SignalName(status.Signal()), At: now}
	default:
		return launch.Exit{Code: status.ExitStatus(), At: now}
	}
}

// end makes the process end: kindly first, and by force after grace.
func (r *run) end(ctx context.Context, grace time.Duration) error {
	if grace > 0 {
		if err := r.proc.Signal(unix.SIGTERM); err != nil {
			return err
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-r.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	if err := r.proc.Signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// release lets go of the process.
func (r *run) release() error {
	if err := r.proc.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// discard kills a process that nobody shall know of.
func discard(proc *pidfd.Process) error {
	if err := proc.Signal(unix.SIGKILL); err != nil {
		return err
	}
	_, _, err := proc.Wait()
	return errors.Join(err, proc.Close())
}

// adopt makes the worker of a record known, and holds its process if that runs.
func (l *Launcher) adopt(ctx context.Context, rec record) error {
	if rec.Run == nil {
		id, found, err := l.findOrphan(ctx, rec.Spec)
		if err != nil {
			return fmt.Errorf("adopt %s: %w", rec.Spec.Serial, err)
		}
		if !found { // Start looks again: it takes the lock
			l.put(entry{rec: rec})
			return nil
		}
		rec.Run, rec.Exit = &id, nil
		if err := rec.save(l.dir); err != nil {
			return fmt.Errorf("adopt %s: %w", rec.Spec.Serial, err)
		}
	}
	proc, err := pidfd.Open(*rec.Run)
	switch {
	case errors.Is(err, pidfd.ErrGone):
		l.put(entry{rec: rec})
		return nil
	case err != nil:
		return fmt.Errorf("adopt %s: %w", rec.Spec.Serial, err)
	}
	l.watch(rec, proc)
	return nil
}

// findOrphan looks for a run that an earlier host started and did not live to
// write down: its lock is held. The process may still be on its way to exec,
// without its mark, so a held lock is worth some patience.
func (l *Launcher) findOrphan(ctx context.Context, spec launch.Spec) (id pidfd.Identity, found bool, err error) {
	moment, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err = poll(moment, func() (bool, error) {
		free, err := lockFree(l.lockPath(spec.Serial))
		if err != nil || free {
			return free, err
		}
		pid, ok, err := l.leader(spec)
		if err != nil || !ok {
			return false, err
		}
		if id, err = pidfd.Identify(pid); err != nil {
			return false, nil // it ended between two looks
		}
		found = true
		return true, nil
	})
	if ctx.Err() == nil && moment.Err() != nil {
		l.log.Warn("an unknown process holds the lock of a worker", "serial", spec.Serial)
		return id, false, nil
	}
	return id, found, err
}

// poll asks until the answer is yes, soon at first and then every 20 ms.
func poll(ctx context.Context, ask func() (bool, error)) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if yes, err := ask(); err != nil || yes {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
