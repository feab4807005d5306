package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// chameleon is the binary that all versions of that type are made from.
var chameleon = sync.OnceValues(func() ([]byte, error) {
	out := filepath.Join(bin, "chameleon")
	build := exec.Command("go", "build", "-o", out, "github.com/dals-host/dals-host/internal/e2e/chameleon")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build chameleon: %w\n%s", err, text)
	}
	return os.ReadFile(out)
})

// dropChameleon drops versions of the type, each with its behaviour, into the
// running host.
func (h *host) dropChameleon(versions map[string]string) {
	h.t.Helper()
	for version, behaviour := range versions {
		h.dropVersion(version, behaviour)
	}
	h.eventually("all versions registered", func() error {
		types, err := h.client.Types(h.t.Context())
		missing := len(versions)
		for _, typ := range types {
			if _, ok := versions[typ.Version]; ok && typ.Name == "chameleon" {
				missing--
			}
		}
		if err == nil && missing > 0 {
			plugins, _ := h.client.Plugins(h.t.Context())
			err = fmt.Errorf("%d missing; plugins %+v", missing, plugins)
		}
		return err
	})
}

// dropVersion drops one version into the plugins folder, and gives its path.
func (h *host) dropVersion(version, behaviour string) (path string) {
	h.t.Helper()
	binary, err := chameleon()
	if err != nil {
		h.t.Fatal(err)
	}
	path = filepath.Join(h.dir, "plugins", "dals-worker-chameleon-"+version)
	text := append(bytes.Clone(binary), fmt.Sprintf("\nchameleon %s %s\n", version, behaviour)...)
	if err := os.WriteFile(path, text, 0o755); err != nil {
		h.t.Fatal(err)
	}
	return path
}

type about struct {
	Version, Told, Word string
	Calls               int
}

// about asks a worker what runs.
func (h *host) about(worker string) (a about) {
	h.t.Helper()
	if err := json.Unmarshal(h.mustSend(worker, "chameleon.about", struct{}{}).Result, &a); err != nil {
		h.t.Fatal(err)
	}
	return a
}

// is checks what a worker says of itself; calls are counted over its whole life.
func (h *host) is(worker string, want about) {
	h.t.Helper()
	want.Told = want.Version
	if got := h.about(worker); got != want {
		h.t.Errorf("%s says %+v, want %+v", worker, got, want)
	}
}

// comesBack waits until a worker is live.
func (h *host) comesBack(worker string) {
	h.t.Helper()
	h.eventually(worker+" live", func() error {
		if w := h.worker(worker); w.State != "live" || !w.VaultIntegrity {
			return fmt.Errorf("%s: %s; %s", w.State, w.StateReason, w.VaultFault)
		}
		return nil
	})
}

// nothingBetween checks that no worker's folder is half way between two versions.
func (h *host) nothingBetween() {
	h.t.Helper()
	for _, dir := range []string{".stage", ".aside"} {
		left, err := os.ReadDir(filepath.Join(h.dir, "workers", dir))
		if err != nil || len(left) != 0 {
			h.t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func (h *host) healthz(w client.Worker) string {
	h.t.Helper()
	resp, err := web.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", w.Port))
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, bytes.TrimSpace(body))
}

// next ends the host in one way and starts the next one.
func (h *host) next(end func()) {
	h.t.Helper()
	end()
	h.start()
}

// TestStoppedAndStarted: a stopped worker does not run, says so, and stays stopped
// whatever happens to the host, until it is started.
func TestStoppedAndStarted(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		h.dropChameleon(map[string]string{"1.0.0": "well"})
		w := h.forge("nora", "chameleon")
		h.is("nora", about{Version: "1.0.0", Word: "one", Calls: 1})

		atRest := func(when string) {
			t.Helper()
			if pids := h.pids(w.WorkerSerial); len(pids) != 0 {
				t.Errorf("%s: processes %v of a stopped worker", when, pids)
			}
			if got := h.worker("nora"); got.State != "stopped" || got.Port != w.Port || got.VaultIntegrity {
				t.Errorf("%s: %+v", when, got)
			}
			if got := h.healthz(w); got != "503 stopped" {
				t.Errorf("%s: healthz says %s", when, got)
			}
			_, err := h.send("nora", "chameleon.about", struct{}{})
			if said, ok := errors.AsType[*client.Error](err); !ok || said.Code != "worker_unavailable" || !strings.Contains(said.Hint, "dals-host start nora") {
				t.Errorf("%s: sent: %v", when, err)
			}
		}
		for range 2 {
			if _, err := h.client.Stop(t.Context(), "nora", 0); err != nil {
				t.Fatal(err)
			}
			atRest("stopped")
		}
		h.next(h.kill)
		atRest("after the host was killed")
		h.next(h.down)
		atRest("after down")
		if _, err := h.client.Start(t.Context(), "nora", 0); err != nil {
			t.Fatal(err)
		}
		h.is("nora", about{Version: "1.0.0", Word: "one", Calls: 2})
		before := h.pids(w.WorkerSerial)
		if got, err := h.client.Restart(t.Context(), "nora", 0, 0); err != nil || got.State != "live" || !got.VaultIntegrity {
			t.Errorf("restarted: %+v, %v", got, err)
		}
		if after := h.pids(w.WorkerSerial); slices.ContainsFunc(after, func(pid int) bool { return slices.Contains(before, pid) }) {
			t.Errorf("processes before the restart %v, after it %v", before, after)
		}
		h.is("nora", about{Version: "1.0.0", Word: "one", Calls: 3})
		if got := h.healthz(w); got != "200 ok" {
			t.Errorf("healthz says %s", got)
		}
		for kind, want := range map[record.Kind]int{record.WorkerStopped: 1, record.WorkerStarted: 1, record.WorkerRestarted: 1} {
			if n := h.count(func(e record.Entry) bool { return e.Kind == kind }); n != want {
				t.Errorf("%d entries %s, want %d", n, kind, want)
			}
		}
		if _, err := h.client.Stop(t.Context(), "nora", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := h.client.Retire(t.Context(), "nora", 0); err != nil {
			t.Errorf("retire a stopped worker: %v", err)
		}
	})
}

// TestUpgraded: versions live side by side; an upgrade keeps all that is the
// worker's; one that goes wrong leaves the old version.
func TestUpgraded(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		h.dropChameleon(map[string]string{
			"1.0.0": "well", "1.1.0": "well", "2.0.0": "fails", "2.0.1": "exits", "2.0.2": "hangs", "2.0.3": "strict",
		})
		var was client.Worker
		for name, version := range map[string]string{"nora": "1.0.0", "otto": "1.1.0"} {
			made, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: name, Type: "chameleon", ClassCode: "A1", Version: version})
			if err != nil {
				t.Fatal(err)
			}
			if name == "nora" {
				was = made.Worker
			}
			h.is(name, about{Version: version, Word: "one", Calls: 1})
		}
		calls := 1
		nora := func(version, word string) {
			t.Helper()
			calls++
			h.is("nora", about{Version: version, Word: word, Calls: calls})
			w := h.worker("nora")
			if w.TypeVersion != version || w.WorkerSerial != was.WorkerSerial || w.LedgerCode != was.LedgerCode || w.ModelNumber != was.ModelNumber ||
				w.Port != was.Port || w.PublicKey != was.PublicKey || !w.CreatedAt.Equal(was.CreatedAt.Time) {
				t.Errorf("was %+v, is %+v", was, w)
			}
			if pids := h.pids(was.WorkerSerial); len(pids) != 1 {
				t.Errorf("processes %v", pids)
			}
			if _, stderr, code := h.run("verify", "nora"); code != 0 {
				t.Errorf("verify: %s", stderr)
			}
			h.nothingBetween()
		}
		upgrade := func(version string, config any) (client.Upgraded, error) {
			return h.client.Upgrade(t.Context(), client.UpgradeRequest{Worker: "nora", Version: version, Config: config, Timeout: 3 * time.Second})
		}

		for version, why := range map[string]string{
			"2.0.0": "it does not want to open", "2.0.1": "the worker ended: exit code 7", "2.0.2": "no heartbeat came in time",
			"2.0.3": "config does not fit", "3.0.0": "has no version 3.0.0",
		} {
			if _, err := upgrade(version, nil); err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("upgrade to %s: %v, want %q", version, err, why)
			}
			h.comesBack("nora")
			nora("1.0.0", "one")
		}
		for _, config := range []any{nil, map[string]string{"word": "two"}} {
			done, err := upgrade("1.1.0", config)
			if err != nil || !done.VaultIntegrity || done.State != "live" {
				t.Fatalf("%+v, %v\n%s", done, err, h.log)
			}
			nora("1.1.0", map[bool]string{true: "one", false: "two"}[config == nil])
		}
		entries := len(h.entries())
		if done, err := upgrade("1.1.0", nil); err != nil || done.FromVersion != "1.1.0" || len(h.entries()) != entries {
			t.Errorf("to itself: %+v, %v", done, err)
		}

		// Workers are pinned: to the version that they have, also when its file went.
		if err := os.Remove(filepath.Join(h.dir, "plugins", "dals-worker-chameleon-1.1.0")); err != nil {
			t.Fatal(err)
		}
		h.next(h.down)
		h.comesBack("nora")
		nora("1.1.0", "two")

		// The host dies while the new version does not come up.
		failed := make(chan error, 1)
		go func() {
			_, err := h.client.Upgrade(t.Context(), client.UpgradeRequest{Worker: "nora", Version: "2.0.2", Timeout: time.Minute})
			failed <- err
		}()
		h.eventually("new version started", func() error {
			w, err := h.client.Worker(t.Context(), "nora")
			if err == nil && (w.State != "upgrading" || len(h.pids(was.WorkerSerial)) == 0 || !h.startedNew(was.WorkerSerial)) {
				err = errors.New(w.State)
			}
			return err
		})
		h.next(h.kill)
		if err := <-failed; err == nil {
			t.Error("the upgrade succeeded")
		}
		h.comesBack("nora")
		nora("1.1.0", "two")

		// A stopped worker is upgraded and stays stopped.
		if _, err := h.client.Stop(t.Context(), "nora", 0); err != nil {
			t.Fatal(err)
		}
		if done, err := upgrade("1.0.0", nil); err != nil || done.State != "stopped" || len(h.pids(was.WorkerSerial)) != 0 {
			t.Errorf("%+v, %v", done, err)
		}
		if _, err := h.client.Start(t.Context(), "nora", 0); err != nil {
			t.Fatal(err)
		}
		nora("1.0.0", "two")
		if n := h.count(func(e record.Entry) bool { return e.Kind == record.Upgrade }); n != 3 {
			t.Errorf("%d upgrades recorded", n)
		}
	})
}

// startedNew says whether a worker's folder is the new one of its upgrade.
func (h *host) startedNew(serial string) bool {
	_, err := os.Stat(filepath.Join(h.dir, "workers", ".aside", serial))
	return err == nil
}

// TestManyInterrupted: what an interrupted forge --count has made is what it says
// that it made.
func TestManyInterrupted(t *testing.T) {
	t.Parallel()
	h := newHost(t, "process")
	cmd := exec.Command(filepath.Join(bin, "dals-host"), "--data-dir", h.dir, "--json",
		"forge", "--type", "template", "--name", "crowd", "--class-code", "A1", "--count", "300")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("some are made", func() error {
		workers, err := h.client.Workers(t.Context(), client.WorkerFilter{State: "live"})
		if err == nil && len(workers) < 10 {
			err = fmt.Errorf("%d", len(workers))
		}
		return err
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(errs.String(), "error: interrupted: ") {
		t.Errorf("exit code %d: %s", code, &errs)
	}
	var said struct {
		Made   []client.Worker
		Failed []json.RawMessage
	}
	if err := json.Unmarshal(out.Bytes(), &said); err != nil {
		t.Fatal(err)
	}
	names := func(workers []client.Worker) (names []string) {
		for _, w := range workers {
			names = append(names, w.WorkerName)
		}
		slices.Sort(names)
		return names
	}
	h.eventually("the others are gone", func() error {
		workers, err := h.client.Workers(t.Context(), client.WorkerFilter{})
		if err == nil && !slices.Equal(names(workers), names(said.Made)) {
			err = fmt.Errorf("there are %v, said %v", names(workers), names(said.Made))
		}
		return err
	})
	if len(said.Made)+len(said.Failed) != 300 || len(said.Made) == 300 {
		t.Errorf("%d made, %d failed", len(said.Made), len(said.Failed))
	}
}
