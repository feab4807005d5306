package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// private is a containerd of the host's own. It outlives the host, and the next
// host finds it by its command line; nothing that is written down could be
// stale.
type private struct {
	*site
	log     hclog.Logger
	binary  string
	runtime string
	program string // of the shim
	runDir  string // outside of dir, or "": where the socket is when dir is too deep for one
	users   bool   // containers are to have user namespaces of their own

	life    context.Context // ends with close
	end     context.CancelFunc
	keeper  sync.WaitGroup
	started bool // by us; ensure's, which nobody calls twice at a time
	mu      sync.Mutex
	process *pidfd.Process // what keep watches
}

// maxSocket is how long a socket address may be. containerd makes a second
// socket, with a suffix, and takes none that is longer than 104 bytes, though
// Linux would (sys.CreateUnixSocket in containerd 1.6).
const maxSocket = 104 - len(".ttrpc")

// startPrivate finds the data folder's containerd running or starts it, waits
// until it answers, and keeps it running until close.
func startPrivate(ctx context.Context, cfg Config, tools tools, log hclog.Logger) (*private, error) {
	p := &private{log: log, binary: tools.containerd, runtime: tools.runtime, program: tools.shim, users: cfg.RootUID != 0}
	p.site = newSite(cfg, filepath.Join(dirOf(cfg), "containerd.sock"), filepath.Join(dirOf(cfg), "state"))
	if len(p.address) > maxSocket {
		p.runDir = filepath.Join("/run", namespace(cfg.HostID))
		p.address = filepath.Join(p.runDir, "containerd.sock")
	}
	p.shim, p.grouped = filepath.Join(p.dir, "shim"), filepath.Base(p.program) == shim.Binary
	p.roots = filepath.Join("/run", p.unique()+".rootfs")
	p.life, p.end = context.WithCancel(context.WithoutCancel(ctx))
	process, err := p.ensure(ctx)
	if err != nil {
		p.end()
		return nil, fmt.Errorf("start containerd: %w", errors.Join(err, p.undo(ctx)))
	}
	p.process = process
	p.keeper.Go(func() { p.keep(process) })
	p.keeper.Go(p.boundLogs)
	return p, nil
}

func (p *private) taskMade() {} // it has nothing to tell

// ensure returns the running containerd, started if need be, once it answers.
func (p *private) ensure(ctx context.Context) (*pidfd.Process, error) {
	if err := errors.Join(p.makeDirs(), p.linkShim()); err != nil {
		return nil, err
	}
	// A containerd that an earlier host has forked has this lock until it is
	// executed, and only then the command line by which it is found.
	lock, err := os.OpenFile(filepath.Join(p.dir, "start.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	running, err := p.find()
	if err == nil {
		running, err = p.endBlind(ctx, running)
	}
	if err != nil {
		return nil, err
	}
	if len(running) == 0 {
		if err := p.prepare(); err != nil {
			return nil, err
		}
		process, err := p.start()
		if err != nil {
			return nil, err
		}
		running = append(running, process)
	}
	for _, other := range running[1:] {
		_ = other.Close()
	}
	if err := p.awaitAnswer(ctx, running[0]); err != nil {
		return nil, errors.Join(err, running[0].Close())
	}
	return running[0], nil
}

func (p *private) arguments() []string { return []string{p.binary, "--config", p.configFile()} }

// find takes hold of every containerd that runs with our configuration.
func (p *private) find() ([]*pidfd.Process, error) {
	var found []*pidfd.Process
	err := pidfd.Each(func(pid int, _ pidfd.Stat) {
		id, err := pidfd.Identify(pid)
		if err != nil || !p.is(pid) {
			return
		}
		if process, err := pidfd.Open(id); err == nil {
			found = append(found, process)
		}
	})
	return found, err
}

// is says whether pid is our containerd. Only root can pretend to be it.
func (p *private) is(pid int) bool {
	args := pidfd.Cmdline(pid)
	if len(args) != 3 || !slices.Equal(args[1:], p.arguments()[1:]) {
		return false
	}
	uid, ok := pidfd.UID(pid)
	return ok && uid == 0
}

// start forks containerd into a session of its own. Its output goes to a file:
// nothing ties it to this process. What the ones before have said stays there, for
// as long as boundLogs leaves it: a crash is told of before it starts again.
func (p *private) start() (*pidfd.Process, error) {
	log, err := os.OpenFile(p.logFile(), os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fd := -1
	cmd := exec.Command(p.binary, p.arguments()[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + toolPath}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &fd}
	failpoint.Hit("containerd", "spawn", "before")
	if err := p.spawn(cmd); err != nil {
		return nil, err
	}
	failpoint.Hit("containerd", "spawn", "after")
	process, err := pidfd.Hold(fd, cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	p.started = true
	p.log.Info("containerd is started", "pid", cmd.Process.Pid, "address", p.address)
	return process, cmd.Process.Release()
}

// spawn starts containerd in mounts of its own, which shims and runtimes inherit.
func (p *private) spawn(cmd *exec.Cmd) error {
	return apart(hideUnified, func() error {
		if err := guard(p.runtime); err != nil {
			p.log.Warn("the container runtime guards itself, which takes longer", "error", err)
		} else {
			cmd.Env = append(cmd.Env, guardedEnv)
		}
		if err := p.showRoots(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// awaitAnswer waits until the socket accepts. A containerd that ends before is
// an error with the last it had to say.
func (p *private) awaitAnswer(ctx context.Context, process *pidfd.Process) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		conn, err := net.Dial("unix", p.address)
		if err == nil {
			return conn.Close()
		}
		if process.Ended() {
			return worker.Hint(fmt.Errorf("it ended at once: %s: %w", p.lastWords(), worker.ErrUnavailable), "see "+p.logFile())
		}
		select {
		case <-ctx.Done():
			return worker.Hint(fmt.Errorf("it does not answer: %w: %w", err, worker.ErrUnavailable), "see "+p.logFile())
		case <-time.After(wait):
		}
	}
}

// lastWords is the last line of containerd's log, or what of it fits in 4 KiB.
func (p *private) lastWords() string {
	f, err := os.Open(p.logFile())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	const enough = 4 << 10
	data, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-enough), enough))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}

// keep starts containerd again whenever it ends.
func (p *private) keep(process *pidfd.Process) {
	for {
		_, _, err := process.Wait()
		_ = process.Close()
		if p.life.Err() != nil {
			return
		}
		p.log.Warn("containerd has ended; workers run on", "error", err, "said", p.lastWords())
		if process = p.restart(); process == nil {
			return
		}
	}
}

// restart tries until it succeeds; nil means that nobody wants it any more.
func (p *private) restart() *pidfd.Process {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		process, err := p.ensure(p.life)
		if err == nil && p.hold(process) {
			return process
		}
		if p.life.Err() != nil {
			return nil
		}
		p.log.Error("containerd does not start", "error", err)
		select {
		case <-p.life.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// hold makes process the one that close lets go of.
func (p *private) hold(process *pidfd.Process) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil {
		_ = process.Close()
		return false
	}
	p.process = process
	return true
}

// close stops looking after containerd, which stays.
func (p *private) close() error {
	p.mu.Lock()
	p.end()
	err := p.process.Close()
	p.mu.Unlock()
	p.keeper.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
