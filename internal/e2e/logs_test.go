package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk/client"
)

// logsDir is the folder of a worker's log.
func (h *host) logsDir(serial string) string {
	return filepath.Join(h.dir, "workers", "instances", serial, "logs")
}

// logBytes is what a worker's logs take of the disk.
func (h *host) logBytes(serial string) (total int64) {
	files, _ := os.ReadDir(h.logsDir(serial))
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			total += info.Size()
		}
	}
	return total
}

// guards are the processes that bound logs when no host does.
func (h *host) guards() (pids []int) {
	for pid, text := range processes() {
		if strings.Contains(text, "guard-logs") && strings.Contains(text, h.dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestFloodWithoutHost: a worker floods its log and its host dies. The worker goes
// on as fast, what it wrote does not fill the disk, and the next host has the same
// worker and the end of what it wrote.
func TestFloodWithoutHost(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		nora := h.forge("nora", "rogue")
		before := h.pids(nora.WorkerSerial)
		h.mustSend("nora", "rogue.spew", map[string]int{"n": 6000})
		h.kill()
		first := h.guards()
		// A host that does not come up leaves the guarding to another.
		if _, stderr, code := h.run("serve", "--launcher", h.launcher, "--http", taken(t)); code != 1 || !strings.Contains(stderr, "address already in use") {
			t.Errorf("serve: exit %d: %s", code, stderr)
		}
		if guards := h.guards(); len(guards) != 1 || slices.Equal(guards, first) {
			t.Fatalf("log guards %v, want one and not %v", guards, first)
		}
		state := filepath.Join(h.dir, "workers", "instances", nora.WorkerSerial, "state")
		most := int64(0)
		h.eventually("it has written all it wanted", func() error {
			most = max(most, h.logBytes(nora.WorkerSerial))
			_, err := os.Stat(filepath.Join(state, "spewed-end"))
			return err
		})
		text, err := os.ReadFile(filepath.Join(state, "spewed"))
		if err != nil {
			t.Fatal(err)
		}
		mib, _ := strconv.Atoi(string(text))
		t.Logf("%d MiB written, at most %d MiB kept", mib, most>>20)
		if int64(mib) < 100 {
			t.Errorf("only %d MiB were written: the worker was held up", mib)
		}
		h.eventually("the log is bounded", func() error {
			if n := h.logBytes(nora.WorkerSerial); n > 25<<20 { // three times MaxBytes, and a line's beginning
				return fmt.Errorf("%d bytes", n)
			}
			return nil
		})
		h.start()
		if after := h.pids(nora.WorkerSerial); !slices.Equal(before, after) {
			t.Errorf("processes %v, were %v", after, before)
		}
		h.eventually("the log is read", func() error {
			stdout, stderr, code := h.run("logs", "nora", "--tail", "200000")
			if n := strings.Count(stdout, strings.Repeat("x", 1023)+"\n"); code != 0 || n < 7000 {
				return fmt.Errorf("exit %d, %d of its lines: %s", code, n, stderr)
			}
			return nil
		})
		guards := h.guards()
		if len(guards) != 1 {
			t.Fatalf("log guards %v, want one", guards)
		}
		if err := syscall.Kill(guards[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.eventually("there is another log guard", func() error {
			if now := h.guards(); len(now) != 1 || now[0] == guards[0] {
				return fmt.Errorf("%v", now)
			}
			return nil
		})
		if w := h.worker("nora"); w.State != "live" || w.Restarts != 0 {
			t.Errorf("worker %+v", w)
		}
		h.mustRun("stop", "nora")
		if err := os.Remove(filepath.Join(h.logsDir(nora.WorkerSerial), "worker.log")); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := h.run("logs", "nora"); code != 1 || !strings.Contains(stderr, "it has none") || !strings.Contains(stderr, "dals-host worker nora") {
			t.Errorf("logs of a worker without a log: exit %d: %s", code, stderr)
		}
	})
}

// taken is an address that somebody listens at.
func taken(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// TestLogsGoOn: what a worker wrote is there over its restarts, those of its host, and the
// files that it lies in; who follows it sees all of it once, until it is retired.
func TestLogsGoOn(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		nora := h.forge("nora", "rogue")
		log := filepath.Join(h.logsDir(nora.WorkerSerial), "worker.log")
		count := func(what string) func() error {
			return func() error {
				stdout, stderr, code := h.run("logs", "nora")
				if n := strings.Count(stdout, "worker started"); code != 0 || fmt.Sprint(n, " starts") != what {
					return fmt.Errorf("exit %d, %d starts: %s%s", code, n, stdout, stderr)
				}
				return nil
			}
		}
		h.eventually("its first start", count("1 starts"))
		for _, args := range [][]string{{"restart", "nora"}, {"stop", "nora"}, {"start", "nora"}} {
			if _, stderr, code := h.run(args...); code != 0 {
				t.Fatalf("%v: exit %d: %s", args, code, stderr)
			}
		}
		h.eventually("three starts", count("3 starts"))
		h.kill()
		h.start()
		h.eventually("three starts, for the next host", count("3 starts"))
		follower, followed := h.follow("nora")
		h.mustSend("nora", "rogue.flood", map[string]int{"n": 5 << 10})
		h.eventually("the log has turned over", func() error {
			_, err := os.Stat(log + ".1")
			return err
		})
		h.eventually("and is whole", count("3 starts"))
		since := time.Now().UTC().Format(time.RFC3339Nano)
		if _, stderr, code := h.run("restart", "nora"); code != 0 {
			t.Fatalf("restart: exit %d: %s", code, stderr)
		}
		h.eventually("only what came since", func() error {
			stdout, _, _ := h.run("logs", "nora", "--since", since)
			if strings.Contains(stdout, "xxxx") || strings.Count(stdout, "worker started") != 1 {
				return fmt.Errorf("%d bytes, %d starts", len(stdout), strings.Count(stdout, "worker started"))
			}
			return nil
		})
		if _, stderr, code := h.run("retire", "nora"); code != 0 {
			t.Fatalf("retire: exit %d: %s", code, stderr)
		}
		err := follower.Wait()
		text := followed.String()
		if starts, lines := strings.Count(text, "worker started"), strings.Count(text, strings.Repeat("x", 1023)+"\n"); err != nil || starts != 4 || lines != 10<<10 {
			t.Errorf("followed: %v, %d starts of 4, %d lines of %d", err, starts, lines, 10<<10)
		}
		if _, stderr, code := h.run("logs", "nora"); code != 1 || !strings.Contains(stderr, "dals-host events --worker nora") {
			t.Errorf("logs of a retired worker: exit %d: %s", code, stderr)
		}
	})
}

// follow starts a follower of a worker's log, which ends when the worker is retired.
func (h *host) follow(worker string) (*exec.Cmd, *lockedBuffer) {
	h.t.Helper()
	text := &lockedBuffer{}
	cmd := exec.Command(filepath.Join(bin, "dals-host"), "--data-dir", h.dir, "logs", worker, "--follow")
	cmd.Stdout, cmd.Stderr = text, text
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, text
}

// TestFollowedOverUpgrades: who follows a worker sees each of its lines once and in
// order, while upgrades put its folder, and the log in it, aside and back.
func TestFollowedOverUpgrades(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		h.dropChameleon(map[string]string{"1.0.0": "well", "1.1.0": "well", "2.0.0": "fails"})
		if _, err := h.client.Forge(t.Context(), client.ForgeRequest{Type: "chameleon", Version: "1.0.0", Name: "nora", ClassCode: "A1"}); err != nil {
			t.Fatal(err)
		}
		follower, followed := h.follow("nora")
		calls := 0
		ask := func() {
			for range 5 {
				calls = h.about("nora").Calls
			}
		}
		ask()
		for _, to := range []client.UpgradeRequest{
			{Version: "2.0.0"},
			{Version: "1.1.0"},
			{Version: "2.0.0"},
			{Version: "1.1.0", Config: map[string]string{"word": "two"}},
			{Version: "1.1.0", Config: map[string]string{"word": "three"}},
		} {
			to.Worker = "nora"
			if _, err := h.client.Upgrade(t.Context(), to); (err == nil) != (to.Version == "1.1.0") {
				t.Fatalf("upgrade to %s: %v", to.Version, err)
			}
			h.comesBack("nora")
			ask()
		}
		h.mustRun("retire", "nora")
		if err := follower.Wait(); err != nil {
			t.Error(err)
		}
		var want, got []string
		for n := range calls {
			want = append(want, fmt.Sprint("n=", n+1))
		}
		for line := range strings.Lines(followed.String()) {
			if _, fields, found := strings.Cut(line, "was asked "); found {
				got = append(got, strings.Fields(fields)[0])
			}
		}
		if calls != 30 || !slices.Equal(got, want) {
			t.Errorf("%d calls, followed %v:\n%s", calls, got, followed)
		}
	})
}

// TestNoSpaceForLogs: a worker goes on writing while its log's disk is full, and
// its log goes on when there is space again.
func TestNoSpaceForLogs(t *testing.T) {
	for _, launcher := range []string{"process", "containerd"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			in := mounted(t, func(dir string) error { return unix.Mount("small", dir, "tmpfs", 0, "size=200m") })
			h := hostOn(t, in, launcher)
			h.drop("dals-worker-rogue")
			h.eventually("the type is registered", func() error {
				_, err := h.client.Type(t.Context(), "rogue")
				return err
			})
			nora := h.forge("nora", "rogue")
			h.mustSend("nora", "rogue.spew", map[string]int{"n": 2000})
			give := fill(t, in)
			time.Sleep(3 * time.Second) // it writes on into the full disk: what the test is about
			give()
			h.eventually("the worker is not held up", func() error {
				_, err := os.Stat(filepath.Join(h.dir, "workers", "instances", nora.WorkerSerial, "state", "spewed-end"))
				return err
			})
			if _, stderr, code := h.run("logs", "nora"); code != 0 {
				t.Errorf("logs: exit %d: %s", code, stderr)
			}
			h.eventually("its log goes on", func() error {
				before := len(h.logOf())
				if _, err := h.send("nora", "rogue.flood", map[string]int{"n": 100}); err != nil {
					return err
				}
				if after := len(h.logOf()); after <= before {
					return fmt.Errorf("log of %d bytes, was %d", after, before)
				}
				return nil
			})
		})
	}
}
