package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// Wait blocks while the worker runs. Where its task has vanished, which a shim
// that was killed brings about, the Exit is Unknown.
func (l *Launcher) Wait(ctx context.Context, serial worker.Serial) (launch.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		exit, err := l.waitOnce(ctx, serial)
		switch {
		case l.life.Err() != nil:
			return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, errClosed)
		case ctx.Err() != nil:
			return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, ctx.Err())
		case err == nil:
			return exit, nil
		case errors.Is(err, worker.ErrNotFound):
			return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, err)
		}
		// A lost containerd says nothing about the worker.
		l.log.Debug("wait is interrupted", "serial", serial, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (l *Launcher) waitOnce(ctx context.Context, serial worker.Serial) (launch.Exit, error) {
	if _, ok := l.started.Load(serial); ok {
		exit, err := l.await(ctx, serial)
		if err == nil || !isNotFound(err) {
			return exit, err
		}
	}
	c, err := l.client.ContainerService().Get(ctx, string(serial))
	if err != nil {
		return launch.Exit{}, family(err)
	}
	task, err := l.task(ctx, serial)
	if err == nil && task.Status != tasktypes.Status_CREATED {
		exit, err := l.await(ctx, serial)
		if err == nil || !isNotFound(err) {
			return exit, err
		}
	} else if err != nil && !errors.Is(err, worker.ErrNotFound) {
		return launch.Exit{}, err
	}
	pids, err := l.cgroups.processes(serial)
	if err != nil {
		return launch.Exit{}, err
	}
	if len(pids) > 0 {
		return launch.Exit{}, fmt.Errorf("task is gone, processes %v are not", pids)
	}
	return savedExit(c), nil
}

// await waits for the end of a task that is or was running.
func (l *Launcher) await(ctx context.Context, serial worker.Serial) (launch.Exit, error) {
	r, err := l.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: string(serial)})
	if err != nil {
		return launch.Exit{}, err
	}
	exit := launch.Exit{Code: int(r.ExitStatus), At: r.ExitedAt.AsTime()}
	if signal := unix.Signal(exit.Code - 128); exit.Code > 128 {
		exit.Signal = unix.SignalName(signal)
	}
	// The group, and its count, are there until the task is deleted.
	_, over := l.overDisk.Load(serial)
	exit.OverDisk = exit.Signal == "SIGKILL" && over
	exit.OOMKilled = exit.Signal == "SIGKILL" && l.oomKilled(serial)
	return exit, nil
}

// savedExit is the end of the run that Stop has settled last.
func savedExit(c containers.Container) launch.Exit {
	var exit launch.Exit
	if err := json.Unmarshal([]byte(c.Labels[labelExit]), &exit); err != nil {
		return launch.Exit{Unknown: true}
	}
	return exit
}

// saveExit writes down the end of a run; nil forgets it.
func (l *Launcher) saveExit(ctx context.Context, serial worker.Serial, exit *launch.Exit) error {
	var text []byte
	if exit != nil {
		var err error
		if text, err = json.Marshal(exit); err != nil {
			return fmt.Errorf("encode exit: %w", err)
		}
	}
	_, err := l.client.ContainerService().Update(ctx, containers.Container{
		ID: string(serial), Labels: map[string]string{labelExit: string(text)},
	}, "labels."+labelExit)
	if err != nil {
		return fmt.Errorf("write exit down: %w", family(err))
	}
	return nil
}
