package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

// Stop ends the worker. It returns once the task is deleted and the worker's
// cgroup is empty.
func (l *Launcher) Stop(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("stop %s: %w", serial, err)
	}
	defer done()
	if err := l.settle(ctx, serial, grace); err != nil {
		return fmt.Errorf("stop %s: %w", serial, err)
	}
	return nil
}

// Remove ends the worker and deletes its container.
func (l *Launcher) Remove(ctx context.Context, serial worker.Serial) error {
	if l.life.Err() != nil {
		return fmt.Errorf("remove %s: %w", serial, errClosed)
	}
	if err := l.remove(ctx, serial); err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	return nil
}

// remove works also while the launcher is being closed.
func (l *Launcher) remove(ctx context.Context, serial worker.Serial) error {
	done, err := l.turns.Take(ctx, serial)
	if err != nil {
		return err
	}
	defer done()
	return l.removeNow(ctx, serial)
}

// removeNow is remove for who has the container's turn.
func (l *Launcher) removeNow(ctx context.Context, serial worker.Serial) error {
	l.unstarted.Delete(serial)
	l.warm.Delete(serial)
	l.folders.Delete(serial)
	if err := l.settle(ctx, serial, 0); err != nil {
		return err
	}
	failpoint.Hit("containerd", "cgroup", "before")
	if err := l.cgroups.remove(serial); err != nil {
		return err
	}
	failpoint.Hit("containerd", "cgroup", "after")
	if err := l.client.ContainerService().Delete(ctx, string(serial)); err != nil && !isNotFound(err) {
		return family(err)
	}
	return nil
}

// settle ends the container's task, if any, and proves that nothing is left.
func (l *Launcher) settle(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	l.started.Delete(serial)
	task, err := l.task(ctx, serial)
	if err == nil {
		err = l.endTask(ctx, serial, task, grace)
	}
	if err != nil && !errors.Is(err, worker.ErrNotFound) {
		return err
	}
	return l.scrub(ctx, serial)
}

func (l *Launcher) endTask(ctx context.Context, serial worker.Serial, task *tasktypes.Process, grace time.Duration) error {
	if alive(task) {
		l.outlives(serial)
	}
	if grace > 0 && alive(task) {
		if err := l.terminate(ctx, serial, grace); err != nil {
			return err
		}
	}
	if err := l.kill(ctx, serial); err != nil {
		return err
	}
	exit, err := l.await(ctx, serial)
	if err != nil {
		return fmt.Errorf("await task: %w", family(err))
	}
	if task.Status != tasktypes.Status_CREATED {
		if err := l.saveExit(ctx, serial, &exit); err != nil {
			return err
		}
	}
	if _, err := l.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: string(serial)}); err != nil {
		return fmt.Errorf("delete task: %w", family(err))
	}
	return nil
}

// terminate gives the worker its grace to end by itself. Where the runtime cannot
// signal there is none.
func (l *Launcher) terminate(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	if err := l.signal(ctx, serial, unix.SIGTERM); err != nil {
		if isRuntimes(err) {
			return nil
		}
		return err
	}
	// Not a deadline: containerd would be told of it, and might be the first to say
	// that it has passed.
	patient, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(grace, cancel).Stop()
	if _, err := l.await(patient, serial); err != nil && patient.Err() == nil {
		return fmt.Errorf("await task: %w", family(err))
	}
	return nil
}

// kill ends the worker's processes. The runtime may be unable to, where it can
// write no log because the disk cannot be written to; then it goes without it.
func (l *Launcher) kill(ctx context.Context, serial worker.Serial) error {
	err := l.signal(ctx, serial, unix.SIGKILL)
	if err == nil || !isRuntimes(err) {
		return err
	}
	l.log.Warn("the runtime cannot end the worker; its processes are ended without it", "serial", serial, "error", err)
	if other := l.emptyCgroup(ctx, serial); other != nil {
		return errors.Join(err, other)
	}
	return nil
}

// isRuntimes says of an error that containerd is there and in time: it is about
// what the runtime cannot do.
func isRuntimes(err error) bool {
	return !errors.Is(err, worker.ErrUnavailable) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// signal reaches the task's first process; SIGKILL reaches them all. One that
// has ended takes it in silence.
func (l *Launcher) signal(ctx context.Context, serial worker.Serial, signal unix.Signal) error {
	_, err := l.client.TaskService().Kill(ctx, &tasks.KillRequest{
		ContainerID: string(serial), Signal: uint32(signal), All: signal == unix.SIGKILL,
	})
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("signal task: %w", family(err))
	}
	return nil
}

// emptyCgroup kills what a lost shim may have left running.
func (l *Launcher) emptyCgroup(ctx context.Context, serial worker.Serial) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		found, err := l.cgroups.killAll(serial)
		if err != nil || !found {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("empty cgroup: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}
