// Package containerd runs each worker as a container of its own, under a
// private containerd that it starts and looks after, or under one that somebody
// else runs.
//
// Other programs may import it: what it needs is a data folder, a host id and
// root. It promises what launch.Launcher promises and, beyond that, a cage: a
// read-only root, a uid of the worker's own, no capabilities, no new
// privileges, a committed seccomp list, namespaces of its own (its network is
// a loopback device), limits on memory, CPU, processes and disk, and of the
// host's files only the worker's folder and those that it was granted.
//
// Containers belong to containerd's shims. Neither this process nor containerd
// has to live for a worker to run: containerd is started again when it dies,
// and a later host finds it, and the workers, where they are. The worker's
// output goes from the shim to logs/worker.log.
//
// An image is made from the worker binary alone: one uncompressed layer, the
// same bytes in, the same digest out (ImageDigest). It is written to the content
// store for provenance; containers run from one read-only folder per binary,
// whose file is a hard link to the host's store.
//
// A plugin that nobody trusts yet can be run for a moment in a cage that has
// nothing of the host's in it at all: RunnerFunc is for go-plugin's client.
//
// All files lie in <data>/containerd, except for what does not survive the machine:
// what is known of running containers in /run or /dev/shm, where that is memory, the
// sockets of shims in /run/containerd/s, the empty folder
// /run/dals-<host id>-<hash>.rootfs of a private containerd and, where the data
// folder's path is too long for a socket address, /run/dals-<host id>. Container ids
// are serials, in the namespace dals-<host id>; cgroups are /dals-<host id>/<serial>. With a containerd that
// somebody else runs, images and tasks lie in its folders; nothing of it is
// touched outside of that namespace.
//
// Errors of a containerd that is away are worker.ErrUnavailable; Wait sits such
// times out. Exit codes above 128 are read as signals, as shells do: a
// container runtime does not tell the two apart.
package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/internal/turn"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// Name is the launcher's word in records.
const Name = "containerd"

// Labels of every container and image.
const (
	labelHost    = "dals.host"    // the host's id
	labelSerial  = "dals.serial"  // the worker's serial
	labelDigest  = "dals.digest"  // hex SHA-256 of the worker binary
	labelType    = "dals.type"    // worker type
	labelVersion = "dals.version" // type version
	labelExit    = "dals.exit"    // how the last settled run ended, JSON
	labelLog     = "dals.log"     // absolute path of the log file
	labelRunner  = "dals.runner"  // the host's id, of a Runner's container, which has no labelHost
	labelWarm    = "dals.warm"    // the host's id, of a container that Warm made, which has no labelHost
)

// Config is what the launcher needs.
type Config struct {
	DataDir string // the host's data folder, absolute
	HostID  string // 16 hex digits; names namespace, cgroups and labels
	// Address is the socket of a containerd that somebody else runs, as a path or
	// a unix:// URI, or Private. Empty is the one that the data folder was last
	// used with and not taken down from, or else a private one.
	Address string
	Runtime string // Crun or Runc; empty for the better one of those installed
	// Shim is the path of the program of package shim. Empty is the one beside the
	// program that runs, or where programs are, or else containerd's own. With a
	// containerd that somebody else runs it is always containerd's own.
	Shim string
	// RootUID, where it is not 0, gives new containers user namespaces of their own, in
	// which root is this uid and gid of the machine, which nobody else may have. It takes
	// a private containerd, and a machine of which UserNamespaces says that it can. Workers'
	// folders can then be passed by all who get there (o+x): DataDir has to be root's alone.
	RootUID int
	Logger  hclog.Logger
}

// Launcher runs workers as containers. It is a launch.Launcher.
type Launcher struct {
	cfg       Config
	log       hclog.Logger
	tools     tools
	site      *site
	daemon    daemon
	client    *client.Client
	cgroups   cgroups
	turns     turn.Keys[worker.Serial]
	images    turn.Keys[string]
	ready     sync.Map     // digests of binaries that were prepared → of their images
	foreseen  sync.Map     // digests of binaries → of the images that Prepare would make
	unstarted sync.Map     // serials of containers that we made and nobody has started → made
	warm      sync.Map     // serials that Warm was told of → warmed
	started   sync.Map     // serials of the runs that we have started and not settled
	folders   sync.Map     // serials of created workers → their folders
	overDisk  sync.Map     // serials of the runs that were ended because of their disk use
	outlived  outlived     // kills for memory in the runs that there are
	filter    atomic.Value // compiledFilter of new containers, once a runtime has made it
	disk      diskLimits
	pulse     pulse
	watched   chan struct{}   // closed when nobody watches disks any more; nil before anybody does
	runners   sync.WaitGroup  // of plugins that are not removed yet
	life      context.Context // ends with Close
	end       context.CancelFunc
	closing   sync.Once
	draining  sync.WaitGroup
}

var _ launch.Launcher = (*Launcher)(nil)

// New opens the launcher: it finds the data folder's containerd running or
// starts it, or finds that of Config.Address, and returns when it answers. Where
// Available says no, a private one is refused; a data folder whose path containerd
// cannot work with is worker.ErrInvalid, and a folder whose workers are under
// another containerd than Config.Address a worker.ErrConflict.
func New(ctx context.Context, cfg Config) (*Launcher, error) {
	return newWith(ctx, cfg, diskLimits{bytes: launch.DiskBytes, files: launch.DiskFiles}, usualPulse())
}

func newWith(ctx context.Context, cfg Config, disk diskLimits, p pulse) (*Launcher, error) {
	if err := checkPath(cfg.DataDir); err != nil {
		return nil, worker.Hint(fmt.Errorf("data folder: %w", err), "choose a data folder without such characters in its path")
	}
	groups, err := newCgroups(cgroupRoot, cfg.HostID)
	if err != nil {
		return nil, err
	}
	l := &Launcher{cfg: cfg, log: cfg.Logger.Named(Name), cgroups: groups, disk: disk, pulse: p}
	l.life, l.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := l.openDaemon(ctx); err != nil {
		return nil, l.abandon(ctx, err)
	}
	if err := errors.Join(sweepLeases(ctx, l.client.LeasesService()), sweepRootfs(l.rootfsDir()), l.sweepUnowned(ctx), l.findFolders(ctx)); err != nil {
		return nil, l.abandon(ctx, err)
	}
	l.watched = make(chan struct{})
	go l.watchDisk()
	l.draining.Go(l.drainOutputs)
	l.draining.Go(l.watchDaemon)
	l.draining.Go(l.watchKills)
	return l, nil
}

// abandon gives up a launcher that could not be opened, because of cause. No
// containerd stays that nobody would ever take down; one that ran before does.
func (l *Launcher) abandon(ctx context.Context, cause error) error {
	err := errors.Join(cause, l.Close())
	if l.daemon != nil {
		err = errors.Join(err, l.daemon.undo(ctx))
	}
	return err
}

// namespace is the name of all that is one host's: in containerd, in cgroups,
// in /run.
func namespace(hostID string) string { return "dals-" + hostID }

// Name is the launcher's word in records.
func (l *Launcher) Name() string { return Name }

// List tells of all containers in this host's namespace but plugins': also of
// those that somebody else has made there.
func (l *Launcher) List(ctx context.Context) ([]launch.Status, error) {
	if l.life.Err() != nil {
		return nil, fmt.Errorf("list workers: %w", errClosed)
	}
	created, err := l.client.ContainerService().List(ctx)
	if err = family(err); errors.Is(err, context.DeadlineExceeded) {
		err = l.daemon.blame(err)
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	response, err := l.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list tasks: %w", family(err)), l.site.blameShims())
	}
	task := make(map[string]*tasktypes.Process)
	for _, t := range response.Tasks {
		task[t.ID] = t
	}
	list, unsure := make([]launch.Status, 0, len(created)), false
	for _, c := range created {
		if c.Labels[labelRunner] == l.cfg.HostID || c.Labels[labelWarm] == l.cfg.HostID {
			continue
		}
		t, ok := task[c.ID]
		image := launch.Image{Digest: c.Labels[labelDigest], Type: c.Labels[labelType], Version: c.Labels[labelVersion]}
		s := launch.Status{Serial: worker.Serial(c.ID), Image: image}
		// containerd forgets a task before it ends its shim, and does not end it at all
		// when whoever asked for it dies in between.
		s.Unsettled = ok || len(l.leftovers(s.Serial)) > 0
		unsure = unsure || ok && t.Status == tasktypes.Status_UNKNOWN
		if ok && alive(t) {
			s.Running, s.PID = true, int(t.Pid)
		}
		list = append(list, s)
	}
	if unsure { // of what may well run, by a shim that does not answer
		if err := l.site.blameShims(); err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
	}
	slices.SortFunc(list, func(a, b launch.Status) int { return cmp.Compare(a.Serial, b.Serial) })
	return list, nil
}

// ownContainers are all that bear this host's label.
func (l *Launcher) ownContainers(ctx context.Context) ([]containers.Container, error) {
	list, err := l.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q==%q", labelHost, l.cfg.HostID))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", family(err))
	}
	return list, nil
}

// alive says that the worker's code has begun and not ended. A task that was
// created and never started has not.
func alive(t *tasktypes.Process) bool {
	switch t.Status {
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		return true
	}
	return false
}

// Close lets go of containerd and of the workers without touching them; plugins
// that a Runner runs are ended.
func (l *Launcher) Close() (err error) {
	l.closing.Do(func() {
		l.end()
		if l.watched != nil {
			<-l.watched
		}
		l.runners.Wait()
		l.draining.Wait()
		if l.daemon != nil {
			err = l.daemon.close()
		}
		if l.client != nil {
			err = errors.Join(err, l.client.Close())
		}
	})
	return err
}

// Down stops a containerd of the launcher's own and deletes all that it and this
// package have made; in another's it deletes the namespace.
func (l *Launcher) Down(ctx context.Context) error {
	left, err := l.List(ctx)
	if err != nil {
		return fmt.Errorf("take containerd down: %w", err)
	}
	if n := len(left); n > 0 {
		return fmt.Errorf("take containerd down: %d workers are left: %w", n, worker.ErrConflict)
	}
	if err := l.sweepUnowned(ctx); err != nil {
		return fmt.Errorf("take containerd down: %w", err)
	}
	if err := l.daemon.down(ctx); err != nil {
		return fmt.Errorf("take containerd down: %w", err)
	}
	if err := l.cgroups.removeAll(); err != nil {
		return fmt.Errorf("take containerd down: %w", err)
	}
	return nil
}

func (l *Launcher) dir() string { return dirOf(l.cfg) }

func dirOf(cfg Config) string { return filepath.Join(cfg.DataDir, "containerd") }

var errClosed = fmt.Errorf("launcher is closed: %w", worker.ErrUnavailable)

// take waits for serial's turn.
func (l *Launcher) take(ctx context.Context, serial worker.Serial) (func(), error) {
	if l.life.Err() != nil {
		return nil, errClosed
	}
	return l.turns.Take(ctx, serial)
}

// family puts containerd's errors under the words of package worker.
func family(err error) error {
	switch is := kindOf(err); {
	case err == nil:
		return nil
	case is(errdefs.IsNotFound):
		return fmt.Errorf("%w: %w", worker.ErrNotFound, err)
	case is(errdefs.IsAlreadyExists):
		return fmt.Errorf("%w: %w", worker.ErrConflict, err)
	case is(errdefs.IsUnavailable):
		return fmt.Errorf("%w: %w", worker.ErrUnavailable, err)
	case is(errdefs.IsCanceled):
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case is(errdefs.IsDeadlineExceeded):
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	// What the disk says comes through containerd as text alone.
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if strings.Contains(err.Error(), errno.Error()) {
			return fmt.Errorf("%w: %w", errno, err)
		}
	}
	return err
}

// kindOf asks about err, which some of containerd's services give as a gRPC
// status and some have translated.
func kindOf(err error) func(func(error) bool) bool {
	native := errgrpc.ToNative(err)
	return func(is func(error) bool) bool { return is(err) || is(native) }
}

func isNotFound(err error) bool { return kindOf(err)(errdefs.IsNotFound) }

// afterwards is a context for finishing what must not be left half done when
// the caller goes.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}
