package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/containerd"
)

// Descriptors as the plugin has them: paths below a folder that it could not
// enter by name.
const (
	socketDirInside = "/proc/self/fd/3"
	binaryInside    = "/proc/self/fd/4"
)

// drain is how long to wait for output that somebody else may hold open.
const drain = 200 * time.Millisecond

// process is one plugin under probe, as go-plugin wants to see it. Its context
// bounds its life: when it ends, so does the process with all its children.
type process struct {
	ctx    context.Context
	cancel context.CancelFunc
	binary *os.File
	uid    int
	cage   *containerd.Launcher // nil where it is a process of the host's machine
	log    hclog.Logger
	// patience is how long it may live; its context says the same.
	patience time.Duration

	env       []string
	folder    *os.File // of its socket; with a cage, of its output
	container *containerd.Runner
	socket    *os.File // O_PATH; nil until the handshake, and with a cage
	address   string   // of the socket, to the host
	line      *io.PipeReader
	stderr    tail

	started bool
	pid     int
	exited  chan struct{} // closed when it and its children have ended
	gone    chan struct{} // closed when all that they said is read, too
	// What follows may be read once gone is closed.
	noise    *Fault           // why its first line is no handshake
	state    *os.ProcessState // how it ended
	byItself bool             // it was not ended by the host
	timeOver bool             // or only by its container, whose time was over
}

var _ runner.Runner = (*process)(nil)

// prepare gives the plugin its environment and the folder for its socket.
func (p *process) prepare(env []string, dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket folder: %w", err)
	}
	p.folder = os.NewFile(uintptr(fd), dir)
	if p.cage != nil {
		return p.prepareCage(env, dir)
	}
	if err := p.folder.Chown(p.uid, p.uid); err != nil && os.Geteuid() == 0 {
		return fmt.Errorf("give away socket folder: %w", err)
	}
	for _, v := range env {
		if !strings.HasPrefix(v, plugin.EnvUnixSocketDir+"=") {
			p.env = append(p.env, v)
		}
	}
	p.env = append(p.env, plugin.EnvUnixSocketDir+"="+socketDirInside)
	return nil
}

// Start starts the process, or its container.
func (p *process) Start(context.Context) error {
	p.exited, p.gone = make(chan struct{}), make(chan struct{})
	started := make(chan error, 1)
	if p.cage != nil {
		go p.liveCaged(started)
	} else {
		go onThreadOfItsOwn(func() { p.live(started) })
	}
	err := <-started
	p.started = err == nil
	return err
}

// listen reads what the process says. What it returns waits until all is read,
// once the process has ended.
func (p *process) listen(stdout, stderr *os.File) (finish func()) {
	line, feed := io.Pipe()
	p.line = line
	var pumps sync.WaitGroup
	pumps.Go(func() {
		p.feed(stdout, feed)
		_, _ = io.Copy(io.Discard, stdout)
	})
	pumps.Go(func() { _, _ = io.Copy(&p.stderr, stderr) })
	return func() {
		// Whoever else may still hold the pipes' other ends does not hold us.
		late := time.Now().Add(drain)
		_ = stdout.SetReadDeadline(late)
		_ = stderr.SetReadDeadline(late)
		pumps.Wait()
		_ = line.Close()
	}
}

// feed gives go-plugin the plugin's handshake, or nothing.
func (p *process) feed(stdout io.Reader, feed *io.PipeWriter) {
	defer feed.Close()
	line, silent, fault := readHandshake(stdout)
	p.noise = fault
	switch {
	case silent:
		p.linger() // how it ended says more than that it said nothing
	case fault == nil:
		_, _ = io.WriteString(feed, line)
	}
}

// linger gives a process that seems to be dying the time to do so.
func (p *process) linger() {
	select {
	case <-p.exited:
	case <-p.ctx.Done():
	case <-time.After(lastWords):
	}
}

// end ends the process, if it was started, and removes what it had.
func (p *process) end() {
	p.cancel()
	if p.started {
		<-p.gone
	}
	if p.socket != nil {
		p.socket.Close()
	}
	if p.folder != nil {
		if err := errors.Join(p.folder.Close(), os.RemoveAll(p.folder.Name())); err != nil {
			p.log.Warn("probe left its folder behind", "folder", p.folder.Name(), "error", err)
		}
	}
}

// PluginToHost checks the socket that the plugin says it listens on, and keeps
// it open: it is connected to by descriptor, so nobody can put another in its
// place. The plugin must have made it, in its own folder.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	if p.cage != nil {
		return p.cagedToHost(network, address)
	}
	const fix = listenFix
	if network != "unix" {
		return "", "", bad(fix, "listens on %s, not on a unix socket", network)
	}
	dir, name := path.Split(address)
	if path.Clean(dir) != socketDirInside || !filepath.IsLocal(name) {
		return "", "", bad(fix, "listens outside its folder, on %s", address)
	}
	fd, err := unix.Openat(int(p.folder.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", "", bad(fix, "does not listen where it says: %v", err)
	}
	p.socket = os.NewFile(uintptr(fd), name)
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFSOCK || int(s.Uid) != p.uid {
		return "", "", bad(fix, "names something as its socket that is none of its own")
	}
	p.address = byDescriptor(p.socket)
	return network, p.address, nil
}

const listenFix = "listen on a unix socket in the folder named by " + plugin.EnvUnixSocketDir

// dial connects to the checked socket.
func (p *process) dial(ctx context.Context, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", p.address)
}

func byDescriptor(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// HostToPlugin implements runner.Runner; nothing of the host's is given away.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// Stdout is the handshake, once it is known to be one, and nothing else.
func (p *process) Stdout() io.ReadCloser { return p.line }

// Stderr is empty: what the plugin says is kept by the process itself.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Wait waits until nothing of the process is left.
func (p *process) Wait(context.Context) error { <-p.gone; return nil }

// Kill ends the process and waits for that.
func (p *process) Kill(context.Context) error { p.cancel(); <-p.gone; return nil }

// ID is the process's ID.
func (p *process) ID() string { return strconv.Itoa(p.pid) }

// Name is for go-plugin's log.
func (p *process) Name() string { return "dals-worker" }

// Diagnose implements runner.Runner; diagnose does better.
func (p *process) Diagnose(context.Context) string { return "" }

// obituary says how the process ended by itself; nothing if the host ended it.
func (p *process) obituary() string {
	if p.cage != nil {
		return p.cagedObituary()
	}
	if !p.byItself || p.state == nil {
		return ""
	}
	status, _ := p.state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return fmt.Sprintf("was ended by a signal from outside (%v)", status.Signal())
	}
	return fmt.Sprintf("exited with code %d", status.ExitStatus())
}
