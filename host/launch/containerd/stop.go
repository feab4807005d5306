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
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	defer done()
	l.fresh.Delete(serial)
	if err := l.settle(ctx, serial, 0); err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	failpoint.Hit("containerd", "cgroup", "before")
	if err := l.cgroups.remove(serial); err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	failpoint.Hit("containerd", "cgroup", "after")
	if err := l.client.ContainerService().Delete(ctx, string(serial)); err != nil && !isNotFound(err) {
		return fmt.Errorf("remove %s: %w", serial, family(err))
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
	if grace > 0 && alive(task) {
		if err := l.signal(ctx, serial, unix.SIGTERM); err != nil {
			return err
		}
		patient, cancel := context.WithTimeout(ctx, grace)
		_, err := l.await(patient, serial)
		cancel()
		if err != nil && patient.Err() == nil {
			return fmt.Errorf("await task: %w", family(err))
		}
	}
	if err := l.signal(ctx, serial, unix.SIGKILL); err != nil {
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
