package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/worker"
)

// Create makes the container, which costs containerd one record. The image must
// have been prepared.
func (l *Launcher) Create(ctx context.Context, spec launch.Spec) error {
	if err := l.check(spec); err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	done, err := l.take(ctx, spec.Serial)
	if err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	defer done()
	claimed, err := l.claim(ctx, spec)
	if err == nil && !claimed {
		err = l.createCold(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	l.folders.Store(spec.Serial, spec.Dir)
	return nil
}

func (l *Launcher) createCold(ctx context.Context, spec launch.Spec) error {
	c, err := l.container(spec)
	if err == nil {
		err = l.register(ctx, c, spec)
	}
	if err == nil {
		l.unstarted.Store(spec.Serial, made{Container: c, fresh: true})
	}
	return err
}

func (l *Launcher) check(spec launch.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if err := checkPath(spec.Dir); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	return nil
}

// Start makes the container's task and starts it. A task that was made and not
// started, because its host died in between, is taken up.
func (l *Launcher) Start(ctx context.Context, serial worker.Serial) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("start %s: %w", serial, err)
	}
	defer done()
	if err := l.start(ctx, serial); err != nil {
		return fmt.Errorf("start %s: %w", serial, err)
	}
	return nil
}

func (l *Launcher) start(ctx context.Context, serial worker.Serial) error {
	c, err := l.created(ctx, serial)
	if err != nil {
		return err
	}
	folders, err := openMounts(c.Container)
	if err != nil {
		return err
	}
	defer closeMounts(folders)
	if err := l.haveTask(ctx, c); err != nil {
		return err
	}
	if err := l.checkMounts(ctx, serial, folders); err != nil {
		return errors.Join(err, l.undoStart(ctx, serial))
	}
	l.overDisk.Delete(serial)
	if err := l.startTask(ctx, serial); err != nil {
		return l.startFailed(ctx, serial, fmt.Errorf("start task: %w", family(err)))
	}
	if err := l.own(ctx, c); err != nil {
		return errors.Join(fmt.Errorf("claim container: %w", err), l.undoStart(ctx, serial))
	}
	l.started.Store(serial, true)
	return nil
}

// startTask starts a task that was made.
func (l *Launcher) startTask(ctx context.Context, serial worker.Serial) error {
	if l.site.grouped {
		failpoint.Hit("containerd", "shim.Start", "before")
		err := shim.Start(ctx, l.site.bundle(serial), string(serial))
		failpoint.Hit("containerd", "shim.Start", "after")
		if !errors.Is(err, shim.ErrNoDaemon) {
			return err
		}
	}
	_, err := l.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: string(serial)})
	return err
}

// made is a container and what is known of it, because this launcher has made it and
// nobody has started it.
type made struct {
	containers.Container
	fresh   bool // it has no task, and has left nothing
	claimed bool // it has a task, and is not the worker's yet
}

// created is the worker's container.
func (l *Launcher) created(ctx context.Context, serial worker.Serial) (made, error) {
	if c, ok := l.unstarted.LoadAndDelete(serial); ok {
		return c.(made), nil
	}
	c, err := l.client.ContainerService().Get(ctx, string(serial))
	return made{Container: c}, family(err)
}

// haveTask makes the container's task, unless there is one that was never started.
func (l *Launcher) haveTask(ctx context.Context, m made) error {
	c, serial := m.Container, worker.Serial(m.ID)
	switch {
	case m.claimed:
		return nil
	case m.fresh:
		if err := l.createTask(ctx, c); err != nil {
			return err
		}
		l.keepFilter(serial)
		return nil
	}
	task, err := l.task(ctx, serial)
	switch {
	case err == nil && task.Status == tasktypes.Status_CREATED:
		return nil
	case err == nil:
		return fmt.Errorf("its last run is not settled by a stop: %w", worker.ErrConflict)
	case !errors.Is(err, worker.ErrNotFound):
		return err
	}
	if c.Labels[labelExit] != "" { // it tells of the run before this one
		if err := l.saveExit(ctx, serial, nil); err != nil {
			return err
		}
	}
	if err := l.expectNothing(ctx, serial); err != nil {
		return err
	}
	return l.createTask(ctx, c)
}

// startFailed undoes a start, unless it was too late: an earlier host's start
// of the same task may have been under way.
func (l *Launcher) startFailed(ctx context.Context, serial worker.Serial, cause error) error {
	if task, err := l.task(ctx, serial); err == nil && alive(task) {
		return fmt.Errorf("it runs already: %w: %w", worker.ErrConflict, cause)
	}
	return errors.Join(cause, l.undoStart(ctx, serial))
}

// createTask makes the container's task. In the moments after a host died in
// the middle of the same, containerd still clears that away, and may take the
// files of the new task for those of the old; then it is tried again.
func (l *Launcher) createTask(ctx context.Context, c containers.Container) error {
	serial := worker.Serial(c.ID)
	if err := makeLog(c.Labels[labelLog]); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := l.requestTask(ctx, c)
		if err == nil {
			l.daemon.taskMade()
			return nil
		}
		if errors.Is(err, worker.ErrConflict) {
			return err
		}
		if undoErr := l.undoStart(ctx, serial); undoErr != nil {
			return errors.Join(err, undoErr)
		}
		if attempt == 3 || !strings.Contains(err.Error(), "failed to start shim") {
			return err
		}
		l.log.Debug("task is created again", "serial", serial, "error", err)
	}
}

// undoStart ends what a start that failed may have begun, even if its caller
// has gone.
func (l *Launcher) undoStart(ctx context.Context, serial worker.Serial) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	return l.settle(ctx, serial, 0)
}

// expectNothing refuses while anything of an earlier run or start is left.
func (l *Launcher) expectNothing(ctx context.Context, serial worker.Serial) error {
	pids, err := l.cgroups.processes(serial)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("processes %v of an earlier run are left: %w", pids, worker.ErrConflict)
	}
	gone, err := l.awaitNoLeftovers(ctx, serial, 2*time.Second)
	if err == nil && !gone {
		err = fmt.Errorf("an earlier start was not finished: %w", worker.ErrConflict)
	}
	return err
}

// makeLog makes the log file, if need be. The shim would make it open to others.
func makeLog(path string) error {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if err := log.Close(); err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	return nil
}

func (l *Launcher) requestTask(ctx context.Context, c containers.Container) error {
	path := c.Labels[labelLog]
	// The shim appends to a path that is no FIFO, as it does to a file:// URI. But
	// when both streams have one name the shims of 1.6 close the file as soon as
	// the worker closes one stream, and never drain the other: hence two names.
	_, err := l.client.TaskService().Create(ctx, &tasks.CreateTaskRequest{
		ContainerID: c.ID, Stdout: path, Stderr: filepath.Dir(path) + "/./" + filepath.Base(path),
	})
	if err != nil {
		return fmt.Errorf("create task: %w", family(err))
	}
	return nil
}

// task is the container's task; worker.ErrNotFound if it has none.
func (l *Launcher) task(ctx context.Context, serial worker.Serial) (*tasktypes.Process, error) {
	r, err := l.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: string(serial)})
	if err != nil {
		return nil, fmt.Errorf("look up task: %w", family(err))
	}
	return r.Process, nil
}
