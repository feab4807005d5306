package containerd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// RunnerConfig says which plugin a Runner runs, as whom, and for how long.
type RunnerConfig struct {
	Image  launch.Image // Digest and Path of a static binary
	UID    int          // its uid and gid, not 0; nobody else may have it
	Life   time.Duration
	Limits worker.Limits // where they say nothing, the defaults of package launch hold
}

// RunnerFunc is for the ClientConfig of a go-plugin client whose plugin nobody
// trusts: the client then runs it in a container. The UnixSocketConfig's TempDir
// must be a folder that only the caller can enter, and SkipHostEnv set: what is
// in the command's environment is the plugin's. The command is not looked at
// beyond that.
//
// The cage is a worker's, with less in it: the plugin finds its binary, an
// environment, and a /tmp of its own that counts as its memory. It has no network, no
// folder of the host's, nothing on the disk that it could write, and the time of
// RunnerConfig.Life. Its socket is reached inside its own /tmp, by a descriptor. The
// container is removed when the plugin ends, when it is killed, when its time is
// over, when the launcher is closed, or, where the host was killed, by the next
// New.
//
// AutoMTLS works, Reattach and TCP do not.
func (l *Launcher) RunnerFunc(c RunnerConfig) func(hclog.Logger, *exec.Cmd, string) (runner.Runner, error) {
	return func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
		return l.NewRunner(c, cmd.Env, dir)
	}
}

// Runner is one plugin in a container of its own, to be started once. It is a
// runner.Runner; RunnerFunc makes one for go-plugin.
type Runner struct {
	launcher *Launcher
	cfg      RunnerConfig
	id       worker.Serial
	env      []string
	dir      string // of its FIFOs; the host's own
	stdout   pipe
	stderr   pipe
	tmp      *os.File // its /tmp, O_PATH
	end      context.CancelFunc
	ended    chan struct{} // closed when it has ended
	exit     launch.Exit   // to be read when ended is closed
	gone     chan struct{} // closed when nothing is left of it

	mu      sync.Mutex
	sockets []*os.File // O_PATH; what the plugin listens on
	over    bool       // there are no more of them
}

var _ runner.Runner = (*Runner)(nil)

const (
	runnerPrefix = "probe-" // of the ids of Runners' containers; serials begin otherwise
	runnerTmp    = "/tmp"   // where a plugin makes its socket
	maxSockets   = 16
)

// NewRunner prepares a Runner with an environment; dir is a folder that exists,
// of which nobody else knows. A plugin.EnvUnixSocketDir in env is replaced.
func (l *Launcher) NewRunner(c RunnerConfig, env []string, dir string) (*Runner, error) {
	if err := c.Image.Check(); err != nil {
		return nil, fmt.Errorf("make runner: %w", err)
	}
	if c.UID <= 0 || c.UID > math.MaxInt32 || c.Life <= 0 {
		return nil, fmt.Errorf("make runner: uid %d and life %v must be positive: %w", c.UID, c.Life, worker.ErrInvalid)
	}
	if err := checkPath(dir); err != nil {
		return nil, fmt.Errorf("make runner: %w", err)
	}
	id := make([]byte, 8)
	_, _ = rand.Read(id) // it never fails
	r := &Runner{launcher: l, cfg: c, id: worker.Serial(runnerPrefix + hex.EncodeToString(id)), dir: dir, ended: make(chan struct{}), gone: make(chan struct{})}
	for _, v := range env {
		if !strings.HasPrefix(v, plugin.EnvUnixSocketDir+"=") {
			r.env = append(r.env, v)
		}
	}
	r.env = append(r.env, plugin.EnvUnixSocketDir+"="+runnerTmp)
	return r, nil
}

// Start runs the plugin. Where it fails nothing is left; a cancelled ctx makes it
// fail, and after it means nothing.
func (r *Runner) Start(ctx context.Context) error {
	l := r.launcher
	if l.life.Err() != nil {
		return fmt.Errorf("start plugin: %w", errClosed)
	}
	err := r.openPipes()
	if err == nil {
		err = l.runnerRootfs(ctx, r.cfg.Image)
	}
	if err == nil {
		err = r.launch(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start plugin: %w", err), r.abandon(ctx))
	}
	life, end := context.WithTimeout(l.life, r.cfg.Life)
	r.end = end
	l.runners.Go(func() { r.live(life) })
	return nil
}

// runnerRootfs makes the root folder of a binary, without an image of it.
func (l *Launcher) runnerRootfs(ctx context.Context, image launch.Image) error {
	done, err := l.images.Take(ctx, image.Digest)
	if err != nil {
		return err
	}
	defer done()
	if rootfsReady(l.rootfs(image.Digest)) {
		return nil
	}
	binary, err := os.Open(image.Path)
	if err != nil {
		return fmt.Errorf("open binary: %w", err)
	}
	defer binary.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, binary); err != nil {
		return fmt.Errorf("read binary: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != image.Digest {
		return fmt.Errorf("binary %s has digest %s, want %s: %w", image.Path, got, image.Digest, worker.ErrCorrupt)
	}
	return makeRootfs(l.rootfs(image.Digest), image.Path)
}

// launch makes the container and has it run.
func (r *Runner) launch(ctx context.Context) error {
	l := r.launcher
	c, err := l.runnerContainer(r)
	if err != nil {
		return err
	}
	if _, err := l.client.ContainerService().Create(ctx, c); err != nil {
		return fmt.Errorf("create container: %w", family(err))
	}
	_, err = l.client.TaskService().Create(ctx, &tasks.CreateTaskRequest{
		ContainerID: c.ID, Stdout: r.stdout.path, Stderr: r.stderr.path,
	})
	if err != nil {
		return fmt.Errorf("create task: %w", family(err))
	}
	// The shim has the other ends now: when the plugin ends, so does its output.
	if err := errors.Join(r.stdout.writer.Close(), r.stderr.writer.Close()); err != nil {
		return fmt.Errorf("hand output over: %w", err)
	}
	// The first process is there, and waits to be started.
	task, err := l.task(ctx, r.id)
	if err != nil {
		return err
	}
	if r.tmp, err = openInside(int(task.Pid), runnerTmp); err != nil {
		return fmt.Errorf("open plugin's folder: %w", err)
	}
	if _, err := l.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: c.ID}); err != nil {
		return fmt.Errorf("start task: %w", family(err))
	}
	return nil
}

// openInside opens a folder as process pid sees it.
func openInside(pid int, folder string) (*os.File, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, strings.TrimPrefix(folder, "/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), folder), nil
}

// live sees the plugin to its end and removes it.
func (r *Runner) live(life context.Context) {
	defer close(r.gone)
	defer r.end()
	l := r.launcher
	r.exit = r.awaitExit(life)
	close(r.ended)
	// Close ends l.life, and with it this plugin: what follows must outlive it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(life), patienceOfRunner)
	defer cancel()
	r.closeSockets()
	if err := r.abandon(ctx); err != nil {
		l.log.Error("plugin's container not removed; the next host does it", "id", r.id, "error", err)
	}
}

// patienceOfRunner bounds the removal of a plugin that has ended.
const patienceOfRunner = 10 * time.Second

// awaitExit waits until the plugin has ended or life is over. How it ended is
// Unknown where nobody saw that.
func (r *Runner) awaitExit(life context.Context) launch.Exit {
	for {
		exit, err := r.launcher.await(life, r.id)
		if err == nil {
			return exit
		}
		if life.Err() != nil || isNotFound(err) {
			return launch.Exit{Unknown: true}
		}
		select { // containerd is away: that says nothing of the plugin
		case <-life.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// abandon removes the container, also one that was half made, and lets go of all
// that the Runner has open.
func (r *Runner) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patienceOfRunner)
	defer cancel()
	err := r.launcher.remove(ctx, r.id)
	r.stdout.drop()
	r.stderr.drop()
	if r.tmp != nil {
		_ = r.tmp.Close()
	}
	return err
}

// sweepUnowned removes what an earlier host's Runners have left, and what it kept
// warm: the containers that are no worker's.
func (l *Launcher) sweepUnowned(ctx context.Context) error {
	left, err := l.client.ContainerService().List(ctx,
		fmt.Sprintf("labels.%q==%q", labelRunner, l.cfg.HostID), fmt.Sprintf("labels.%q==%q", labelWarm, l.cfg.HostID))
	if err != nil {
		return fmt.Errorf("list containers of no worker: %w", family(err))
	}
	for _, c := range left {
		if err := l.remove(ctx, worker.Serial(c.ID)); err != nil {
			return fmt.Errorf("remove an earlier host's container of no worker: %w", err)
		}
	}
	return nil
}

// PluginToHost checks the socket that the plugin says it listens on. The address
// that it returns holds on to that very socket: nobody can put another in its
// place. It is good until the plugin is gone, or is killed. A plugin has one for
// each service that go-plugin's broker is asked for, and 16 at most; the host
// has none for it: HostToPlugin refuses.
func (r *Runner) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" {
		return "", "", fmt.Errorf("listens on %s, not on a unix socket: %w", network, worker.ErrInvalid)
	}
	dir, name := path.Split(address)
	if path.Clean(dir) != runnerTmp || !filepath.IsLocal(name) {
		return "", "", fmt.Errorf("listens outside its folder, on %.200q: %w", address, worker.ErrInvalid)
	}
	fd, err := unix.Openat(int(r.tmp.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", "", fmt.Errorf("does not listen where it says: %w (%w)", err, worker.ErrInvalid)
	}
	socket := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != r.cfg.UID {
		_ = socket.Close()
		return "", "", fmt.Errorf("names something as its socket that is none of its own: %w", worker.ErrInvalid)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sockets) == maxSockets || r.over {
		_ = socket.Close()
		return "", "", fmt.Errorf("listens on more than %d sockets, or has ended: %w", maxSockets, worker.ErrInvalid)
	}
	r.sockets = append(r.sockets, socket)
	return network, fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// HostToPlugin refuses: nothing of the host's can be reached from inside.
func (r *Runner) HostToPlugin(string, string) (string, string, error) {
	return "", "", fmt.Errorf("a caged plugin cannot reach the host: %w", net.ErrClosed)
}

// Stdout is what the plugin prints. Who reads it may set deadlines: it is an
// *os.File.
func (r *Runner) Stdout() io.ReadCloser { return r.stdout.reader }

// Stderr is as Stdout.
func (r *Runner) Stderr() io.ReadCloser { return r.stderr.reader }

// Wait waits until the plugin has ended and its container is removed. An end
// other than by exit code 0 is an error.
func (r *Runner) Wait(ctx context.Context) error {
	if r.end == nil {
		return fmt.Errorf("wait for plugin: it was not started: %w", worker.ErrInvalid)
	}
	select {
	case <-r.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.exit.Unknown || r.exit.Code != 0 {
		return fmt.Errorf("plugin: %s", r.exit)
	}
	return nil
}

// Kill ends the plugin and waits until its container is removed.
func (r *Runner) Kill(ctx context.Context) error {
	if r.end == nil {
		return nil // it was never started
	}
	r.end()
	select {
	case <-r.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Runner) closeSockets() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, socket := range r.sockets {
		_ = socket.Close() // nothing was written to it
	}
	r.sockets, r.over = nil, true
}

// Ended is closed when the plugin has ended, before its container is removed.
func (r *Runner) Ended() <-chan struct{} { return r.ended }

// Exit is how the plugin ended: Unknown where it was ended, or still runs.
func (r *Runner) Exit() launch.Exit {
	select {
	case <-r.ended:
		return r.exit
	default:
		return launch.Exit{Unknown: true}
	}
}

// ID is the container's.
func (r *Runner) ID() string { return string(r.id) }

// Name is for go-plugin's log.
func (r *Runner) Name() string { return binaryName }

// Diagnose tells how the plugin ended, once it has.
func (r *Runner) Diagnose(context.Context) string {
	if exit := r.Exit(); !exit.Unknown {
		return exit.String()
	}
	return ""
}
