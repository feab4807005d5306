package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"

	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// Warm makes a container and its task, whose first process waits to be started.
// Its label says that it is no worker's: List does not tell of it, and whoever
// opens the launcher next removes it.
func (l *Launcher) Warm(ctx context.Context, spec launch.Spec) error {
	if err := l.check(spec); err != nil {
		return fmt.Errorf("warm %s: %w", spec.Serial, err)
	}
	done, err := l.take(ctx, spec.Serial)
	if err != nil {
		return fmt.Errorf("warm %s: %w", spec.Serial, err)
	}
	defer done()
	c, err := l.container(spec)
	if err == nil {
		delete(c.Labels, labelHost)
		c.Labels[labelWarm] = l.cfg.HostID
		err = l.register(ctx, c, spec)
	}
	if err != nil {
		return fmt.Errorf("warm %s: %w", spec.Serial, err)
	}
	first, err := l.warmUp(ctx, c)
	if err != nil {
		after, cancel := afterwards(ctx)
		defer cancel()
		return errors.Join(fmt.Errorf("warm %s: %w", spec.Serial, err), l.removeNow(after, spec.Serial))
	}
	l.keepFilter(spec.Serial)
	l.warm.Store(spec.Serial, warmed{spec, first})
	return nil
}

// warmed is a container that Warm made: from what, and the process that waits.
type warmed struct {
	spec  launch.Spec
	first pidfd.Identity
}

// warmUp makes the container's task, and says which process its first is.
func (l *Launcher) warmUp(ctx context.Context, c containers.Container) (pidfd.Identity, error) {
	if err := l.createTask(ctx, c); err != nil {
		return pidfd.Identity{}, err
	}
	task, err := l.task(ctx, worker.Serial(c.ID))
	if err != nil {
		return pidfd.Identity{}, err
	}
	return pidfd.Identify(int(task.Pid))
}

// claim takes what Warm made for the worker, if there is any and it is what a
// Create of the same worker and a Start would make: from the same spec, which a
// cage is a function of, never run, and with the worker's folder for its own. It is
// the worker's when own has said so, which Start does. What does not fit is removed.
func (l *Launcher) claim(ctx context.Context, spec launch.Spec) (bool, error) {
	found, ok := l.warm.Load(spec.Serial)
	if !ok {
		return false, nil
	}
	if why := unfit(found.(warmed), spec); why != nil {
		l.log.Warn("a worker is created anew: what was kept warm for it does not fit", "serial", spec.Serial, "error", why)
		return false, l.removeNow(ctx, spec.Serial)
	}
	c, err := l.container(spec)
	if err != nil {
		return false, err
	}
	l.warm.Delete(spec.Serial)
	l.unstarted.Store(spec.Serial, made{Container: c, claimed: true})
	return true, nil
}

// own changes the label of a container that was claimed, in one write: from then on
// it is the worker's. It has time until the worker has been started; when a launcher
// dies before that, the next one removes the container.
func (l *Launcher) own(ctx context.Context, c made) error {
	if !c.claimed {
		return nil
	}
	_, err := l.client.ContainerService().Update(ctx, c.Container, "labels", "spec")
	return family(err)
}

// unfit says why what Warm made is not what spec asks for. containerd is not asked:
// only Start starts the process that waits.
func unfit(had warmed, spec launch.Spec) error {
	if had.spec.Dir = spec.Dir; len(spec.Mounts) > 0 || !reflect.DeepEqual(had.spec, spec) {
		return errors.New("it is for another kind of worker")
	}
	first, err := pidfd.Open(had.first)
	if err != nil {
		return err
	}
	defer first.Close()
	for name, writable := range map[string]bool{"": false, launch.StateDir: true, launch.RunDir: true} {
		if err := sees(had.first.PID, path.Join(workerDir, name), filepath.Join(spec.Dir, name), writable); err != nil {
			return err
		}
	}
	return nil
}

// sees checks that process pid sees a folder of the host's under the name inside,
// and whether it may write there. The kernel takes a mount away whose mount point is
// deleted: what is seen then may be the very folder, by another mount.
func sees(pid int, inside, folder string, writable bool) error {
	seen, err := openInside(pid, inside)
	if err != nil {
		return fmt.Errorf("open %s in it: %w", inside, err)
	}
	defer seen.Close()
	var one, other unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(seen.Fd()), &one), unix.Fstatfs(int(seen.Fd()), &fs)); err != nil {
		return fmt.Errorf("stat %s in it: %w", inside, err)
	}
	if err := unix.Lstat(folder, &other); err != nil {
		return &os.PathError{Op: "stat", Path: folder, Err: err}
	}
	if one.Dev != other.Dev || one.Ino != other.Ino || (fs.Flags&unix.ST_RDONLY == 0) != writable {
		return fmt.Errorf("its %s is not %s, or not as it should be: %w", inside, folder, worker.ErrConflict)
	}
	return nil
}
