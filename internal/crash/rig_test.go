package crash

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
)

// patience is how long anything may take here before a test gives up.
const patience = time.Minute

// bin is where TestMain builds the real binaries; the host with failpoints.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "dals-crash-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	if err := build(bin, "-tags", "failpoint"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build makes the binaries in a folder.
func build(dir string, flags ...string) error {
	const module = "github.com/dals-host/dals-host/"
	for name, pkg := range map[string]string{"dals-host": "cmd/dals-host", shim.Binary: "cmd/" + shim.Binary, "dals-worker-chameleon": "internal/e2e/chameleon"} {
		build := exec.Command("go", slices.Concat([]string{"build", "-o", filepath.Join(dir, name)}, flags, []string{module + pkg})...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, text)
		}
	}
	return nil
}

// host is a data folder and the real dals-host process that serves it at the
// moment.
type host struct {
	t        testing.TB
	launcher string
	warm     int    // workers of the type that the host keeps warm
	bin      string // where its binaries are
	dir      string
	id       string
	cmd      *exec.Cmd
	ended    chan struct{} // closed when cmd has
	log      *lockedBuffer
	client   *client.Client // nil before the first boot
}

// newHost makes a data folder with plugins in it. When the test ends the host is
// taken down, and nothing of it may be left.
func newHost(t testing.TB, launcher string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "dals-crash-data-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, launcher: launcher, bin: bin, dir: dir, log: &lockedBuffer{}}
	t.Cleanup(h.clean)
	if err := os.Mkdir(filepath.Join(dir, "plugins"), 0o700); err != nil {
		t.Fatal(err)
	}
	return h
}

// spawn starts a host under a command that may wrap it, and returns once it is
// ready or has ended; ready says which.
func (h *host) spawn(env []string, wrap ...string) (ready bool) {
	h.t.Helper()
	if h.client != nil {
		_ = h.client.Close()
		h.client = nil
	}
	args := slices.Concat(wrap, []string{filepath.Join(h.bin, "dals-host"), "--data-dir", h.dir, "--log-level", "debug", "serve", "--launcher", h.launcher})
	if h.warm > 0 {
		args = append(args, "--warm", fmt.Sprintf("chameleon=%d", h.warm))
	}
	h.cmd, h.log, h.ended = exec.Command(args[0], args[1:]...), &lockedBuffer{}, make(chan struct{})
	h.cmd.Env, h.cmd.Stderr = append(os.Environ(), env...), h.log
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	line := make(chan string, 1)
	go func(cmd *exec.Cmd, ended chan struct{}) {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
		_ = cmd.Wait()
		close(ended)
	}(h.cmd, h.ended)
	select {
	case text := <-line:
		return strings.HasPrefix(text, "ready")
	case <-time.After(patience):
		h.t.Fatalf("the host is neither ready nor dead\n%s", h.log)
		return false
	}
}

// boot starts a host that has to be ready, and calls it.
func (h *host) boot(env []string, wrap ...string) {
	h.t.Helper()
	if !h.spawn(env, wrap...) {
		h.t.Fatalf("the host is not ready\n%s", h.log)
	}
	data, err := os.ReadFile(filepath.Join(h.dir, "keys", "operator.key"))
	if err != nil {
		h.t.Fatal(err)
	}
	key, err := identity.ParseKey(data)
	if err != nil {
		h.t.Fatal(err)
	}
	if h.client, err = client.Dial(context.Background(), client.Config{Host: filepath.Join(h.dir, "host.sock"), Key: key}); err != nil {
		h.t.Fatalf("dial host: %v\n%s", err, h.log)
	}
	if h.id == "" {
		status, err := h.client.Status(context.Background())
		if err != nil {
			h.t.Fatal(err)
		}
		h.id = status.HostID
	}
}

// kill ends the host as a power cut would end it.
func (h *host) kill() {
	_ = h.cmd.Process.Kill() // one that has ended is ended
	<-h.ended
}

// died waits until the host has ended, and says whether it was by SIGKILL.
func (h *host) died(limit time.Duration) (bool, error) {
	select {
	case <-h.ended:
	case <-time.After(limit):
		return false, nil
	}
	if status := h.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		return true, fmt.Errorf("the host ended with %v, not by its own hand", h.cmd.ProcessState)
	}
	return true, nil
}

// registered waits until the host knows n versions of the type.
func (h *host) registered(n int) {
	h.t.Helper()
	h.eventually("all types registered", func() error {
		types, err := h.client.Types(h.t.Context())
		if err == nil && len(types) < n {
			plugins, _ := h.client.Plugins(h.t.Context())
			err = fmt.Errorf("%d types; plugins %+v", len(types), plugins)
		}
		return err
	})
}

func (h *host) eventually(what string, check func() error) {
	h.t.Helper()
	if err := within(patience, check); err != nil {
		h.t.Fatalf("%s: %v\n%s", what, err, h.log)
	}
}

// within asks until the answer is no error, or time is up.
func within(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(25 * time.Millisecond) // between two looks
	}
}

// clean takes the host down and looks for leftovers.
func (h *host) clean() {
	h.t.Helper()
	if _, err := os.Stat(h.dir); err != nil {
		return // it has been called before
	}
	if h.cmd == nil {
		_ = os.RemoveAll(h.dir)
		return
	}
	h.down()
	for pid, text := range processes() {
		if strings.Contains(text, h.dir) || strings.Contains(text, h.id) {
			h.t.Errorf("process %d left: %q", pid, text)
		}
	}
	if mounts, _ := os.ReadFile("/proc/mounts"); bytes.Contains(mounts, []byte(h.dir)) || bytes.Contains(mounts, []byte(h.id)) {
		h.t.Errorf("mounts left:\n%s", mounts)
	}
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Errorf("remove data folder: %v", err)
	}
}

// down ends the host and its workers, if that has not been done.
func (h *host) down() {
	h.t.Helper()
	if h.isDead() && h.cmd.ProcessState.Success() {
		return
	}
	if h.isDead() {
		h.boot(nil)
	}
	_ = h.client.Close()
	down := exec.Command(filepath.Join(bin, "dals-host"), "--data-dir", h.dir, "down", "--timeout", "2s")
	if text, err := down.CombinedOutput(); err != nil {
		h.t.Errorf("down: %v: %s\n%s", err, text, h.log)
		h.kill()
	}
	<-h.ended
}

func (h *host) isDead() bool {
	select {
	case <-h.ended:
		return true
	default:
		return false
	}
}

// lockedBuffer takes the host's log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
