package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/sdk/client"
)

// scene is what must outlive whatever dies around it: a worker that lives, one
// that is stopped, what they have logged and what is recorded of them.
type scene struct {
	*host
	live, stopped client.Worker
	process       []int
	logged        string
	recorded      int
}

func newScene(t *testing.T, h *host) *scene {
	t.Helper()
	s := &scene{host: h, live: h.forge("nora", "rogue"), stopped: h.forge("stan", "rogue")}
	if _, stderr, code := h.run("stop", "stan"); code != 0 {
		t.Fatalf("stop: exit %d: %s", code, stderr)
	}
	h.mustSend("nora", "rogue.count", map[string]int{"n": 0})
	h.mustSend("nora", "rogue.flood", map[string]int{"n": 1})
	s.process, s.recorded = h.pids(s.live.WorkerSerial), len(h.entries())
	h.eventually("its log has what it wrote", func() error {
		s.logged = h.logOf()
		if strings.Count(s.logged, "xxxx") == 0 {
			return errors.New(s.logged)
		}
		return nil
	})
	if len(s.process) != 1 || s.live.Port == 0 {
		t.Fatalf("processes %v, worker %+v", s.process, s.live)
	}
	return s
}

// logOf is what nora has logged.
func (h *host) logOf() string {
	h.t.Helper()
	stdout, stderr, code := h.run("logs", "nora")
	if code != 0 {
		h.t.Fatalf("logs: exit %d: %s", code, stderr)
	}
	return stdout
}

// health is what a worker's port answers.
func (h *host) health(w client.Worker) (int, error) {
	h.t.Helper()
	r, err := web.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", w.Port)) //nolint:noctx // a test's own port
	if err != nil {
		return 0, err
	}
	return r.StatusCode, r.Body.Close()
}

// outlived checks workers, ports, logs and registry after something has died. Only
// where the worker itself had to die is it another process, once.
func (s *scene) outlived(restarts int) {
	s.t.Helper()
	s.eventually("the worker lives, and the stopped one does not", func() error {
		live, stopped := s.worker("nora"), s.worker("stan")
		if live.State != "live" || int(live.Restarts) != restarts || !live.VaultIntegrity || live.WorkerSerial != s.live.WorkerSerial {
			return fmt.Errorf("%s, %d restarts: %s %s", live.State, live.Restarts, live.StateReason, live.VaultFault)
		}
		if stopped.State != "stopped" || len(s.pids(s.stopped.WorkerSerial)) != 0 {
			return fmt.Errorf("the stopped one is %s", stopped.State)
		}
		now := s.pids(s.live.WorkerSerial)
		if same := slices.Equal(now, s.process); len(now) != 1 || same != (restarts == 0) {
			return fmt.Errorf("processes %v, were %v", now, s.process)
		}
		return nil
	})
	s.eventually("its port answers, and that of the stopped one says so", func() error {
		live, err := s.health(s.live)
		stopped, err2 := s.health(s.stopped)
		if live != http.StatusOK || stopped != http.StatusServiceUnavailable {
			return fmt.Errorf("healthz: %d and %d, %w", live, stopped, errors.Join(err, err2))
		}
		return nil
	})
	s.mustSend("nora", "rogue.flood", map[string]int{"n": 1})
	s.eventually("its log goes on", func() error {
		if now := s.logOf(); !strings.HasPrefix(now, s.logged) || strings.Count(now, "xxxx") <= strings.Count(s.logged, "xxxx") {
			return fmt.Errorf("log of %d bytes after one of %d", len(now), len(s.logged))
		}
		return nil
	})
	if n := len(s.entries()); n <= s.recorded {
		s.t.Errorf("%d entries, were %d", n, s.recorded)
	}
	s.forge("later"+fmt.Sprint(len(s.entries())), "rogue")
	s.settled()
	s.verify()
}

// having are the processes that have all the words in their arguments.
func (h *host) having(words ...string) (pids []int) {
	for pid := range processes() {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(string(args), word) }) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h *host) containerd() int {
	h.t.Helper()
	pids := h.having("--config", filepath.Join(h.dir, "containerd", "config.toml"))
	if len(pids) != 1 {
		h.t.Fatalf("containerds %v, want one", pids)
	}
	return pids[0]
}

func (h *host) killAll(pids []int) {
	h.t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			h.t.Fatal(err)
		}
	}
}

// TestContainerdEnds: killed or told to end, containerd takes no worker with it,
// and is back without the host being started again.
func TestContainerdEnds(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "restarted": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, newHost(t, "containerd"))
			before := s.containerd()
			if err := syscall.Kill(before, signal); err != nil {
				t.Fatal(err)
			}
			s.mustSend("nora", "rogue.count", map[string]int{"n": 0}) // whether it is there or not
			s.eventually("containerd is back", func() error {
				now := s.having("--config", filepath.Join(s.dir, "containerd", "config.toml"))
				if len(now) != 1 || now[0] == before {
					return fmt.Errorf("containerds %v, was %d", now, before)
				}
				conn, err := net.Dial("unix", filepath.Join(s.dir, "containerd", "containerd.sock"))
				if err != nil {
					return err
				}
				return conn.Close()
			})
			s.outlived(0)
		})
	}
}

// TestDownWithoutContainerd: containerd is away when all is to end; nothing is
// left, which is what the cleaning up of every test looks for.
func TestDownWithoutContainerd(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	h.forge("nora", "template")
	h.killAll([]int{h.containerd()})
	h.down()
}

// TestHostUpgraded: the next host is another binary, of another version, at
// another path.
func TestHostUpgraded(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		s := newScene(t, h)
		next := filepath.Join(t.TempDir(), "dals-host-next")
		build := exec.Command("go", "build", "-ldflags", "-X main.version=v99.0.0", "-o", next, "github.com/dals-host/dals-host/cmd/dals-host")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, text)
		}
		if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := h.cmd.Wait(); err != nil {
			t.Fatalf("detach: %v", err)
		}
		h.binary = next
		h.start()
		status, err := h.client.Status(t.Context())
		if err != nil || status.Version != "v99.0.0" {
			t.Fatalf("version %q, %v", status.Version, err)
		}
		s.outlived(0)
		if guards := h.guards(); len(guards) != 1 {
			t.Errorf("log guards %v, want the next host's alone", guards)
		}
	})
}

// TestShimKilled: nobody owns the worker's process any more, so it ends, and the
// worker runs again, once.
func TestShimKilled(t *testing.T) {
	t.Parallel()
	s := newScene(t, newHost(t, "containerd"))
	shims := s.having(shim.Binary, s.id)
	if len(shims) != 1 {
		t.Fatalf("shims %v, want one", shims)
	}
	s.killAll(shims)
	s.eventually("the process that lost its shim has ended", func() error {
		if slices.Contains(s.pids(s.live.WorkerSerial), s.process[0]) {
			return fmt.Errorf("process %d runs on", s.process[0])
		}
		return nil
	})
	s.outlived(1)
}

// TestMachineRebooted: everything is killed, and what lies in memory is gone: the
// next host brings back what lived, and only that.
func TestMachineRebooted(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		s := newScene(t, h)
		h.kill()
		h.killAll(h.having("--config", filepath.Join(h.dir, "containerd", "config.toml")))
		h.killAll(h.having("containerd-shim", h.id))
		h.killAll(h.guards())
		h.killAll(h.pids(s.live.WorkerSerial))
		h.eventually("nothing runs", func() error {
			if pids := append(h.having(h.dir), h.pids(s.live.WorkerSerial)...); len(pids) > 0 {
				return fmt.Errorf("processes %v", pids)
			}
			return nil
		})
		forgetMemory(t, h)
		h.start()
		s.outlived(1)
		if h.launcher == "containerd" {
			if left := h.stateLinks(); len(left) > 0 {
				t.Errorf("still lead to nothing: %v", left)
			}
		}
	})
}

// forgetMemory does to files what a boot does: /run, /dev/shm and cgroups are empty,
// and what tells of the boot tells of an earlier one.
func forgetMemory(t *testing.T, h *host) {
	t.Helper()
	if h.launcher != "containerd" {
		return
	}
	if err := os.WriteFile(filepath.Join(h.dir, "containerd", "boot"), []byte("earlier"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.forgetGroups()
	for _, socket := range h.shimSockets() {
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
	}
	forgotten := 0
	for _, root := range []string{"/run", "/dev/shm"} {
		found, err := filepath.Glob(filepath.Join(root, "dals-"+h.id+"*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range found {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			forgotten++
		}
	}
	if dangling := h.stateLinks(); forgotten > 0 && len(dangling) == 0 {
		t.Errorf("%d folders are gone from memory, and nothing led there", forgotten)
	} else {
		t.Logf("%d folders in memory are gone, links to nothing: %v", forgotten, dangling)
	}
}

// forgetGroups deletes the cgroups of the host's workers.
func (h *host) forgetGroups() {
	h.t.Helper()
	var groups []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "dals-"+h.id) {
			groups = append(groups, path)
		}
		return nil
	})
	slices.Reverse(groups) // those within first
	for _, group := range groups {
		h.eventually("the cgroup is empty", func() error {
			if err := syscall.Rmdir(group); !errors.Is(err, syscall.ENOENT) {
				return err
			}
			return nil
		})
	}
}

// shimSockets are those of the host's shims: one for each group of containers.
func (h *host) shimSockets() (sockets []string) {
	h.t.Helper()
	state, err := filepath.EvalSymlinks(filepath.Join(h.dir, "containerd", "state"))
	if err != nil {
		h.t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(state, shim.Folder))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			sockets = append(sockets, fmt.Sprintf("/run/containerd/s/%x", sha256.Sum256([]byte(filepath.Join(state, shim.Folder, e.Name())))))
		}
	}
	if len(sockets) == 0 {
		h.t.Error("no group of shims is found: what is to be forgotten is elsewhere")
	}
	return sockets
}

// stateLinks are the links in containerd's folder that lead to nothing.
func (h *host) stateLinks() (dangling []string) {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.dir, "containerd"))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(h.dir, "containerd", e.Name())); e.Type() == fs.ModeSymlink && errors.Is(err, fs.ErrNotExist) {
			dangling = append(dangling, e.Name())
		}
	}
	return dangling
}
