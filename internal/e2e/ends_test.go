package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// events are what happened to a worker, each with its reason.
func (h *host) events(worker string) (all []string) {
	h.t.Helper()
	for e, err := range h.client.Events(h.t.Context(), client.EventsRequest{Worker: worker}) {
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, strings.TrimSuffix(e.Event+": "+e.Reason, ": "))
	}
	return all
}

// back waits until the worker was started again.
func (h *host) back(worker string) {
	h.t.Helper()
	h.eventually(worker+" is back", func() error {
		if w := h.worker(worker); w.State != "live" || w.Restarts != 1 {
			return fmt.Errorf("%s, %d restarts: %s", w.State, w.Restarts, w.StateReason)
		}
		return nil
	})
}

// TestEndsAreNamed ends workers of containers by exit, signal, memory and a broken
// folder: events and log say which, also to the next host.
func TestEndsAreNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	n := func(n int) map[string]int { return map[string]int{"n": n} }
	h.forge("exits", "rogue")
	killed := h.forge("killed", "rogue")
	broken := h.forge("broken", "rogue")
	glutton, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: "glutton", Type: "rogue", ClassCode: "A1", Limits: client.Limits{MemoryBytes: 32 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if w := h.worker("glutton"); w.Limits.MemoryBytes != 32<<20 || w.Usage == nil || w.Usage.MemoryBytes <= 0 || w.Usage.MemoryBytes > 32<<20 || w.Usage.CPUTimeMs <= 0 {
		t.Errorf("limits %+v, usage %+v", w.Limits, w.Usage)
	}
	_, _ = h.send("exits", "rogue.exit", n(7))
	_, _ = h.send("glutton", "rogue.eat", n(64))
	h.signal(killed.WorkerSerial, syscall.SIGKILL)
	config := filepath.Join(h.dir, "workers/instances", broken.WorkerSerial, "config.json")
	if err := errors.Join(os.Chmod(config, 0o600), os.WriteFile(config, []byte(`{"other":1}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	h.signal(broken.WorkerSerial, syscall.SIGKILL)
	for _, name := range []string{"exits", "glutton", "killed"} {
		h.back(name)
	}
	h.eventually("broken has failed", func() error {
		if w := h.worker("broken"); w.State != "failed" {
			return fmt.Errorf("%s: %s", w.State, w.StateReason)
		}
		return nil
	})
	if reason := h.worker("broken").StateReason; !strings.Contains(reason, "; its log ends: ") {
		t.Errorf("failed without its last output: %s", reason)
	}
	if !strings.Contains(h.log.String(), "out of memory") {
		t.Error("the host's log does not tell of the memory")
	}
	h.kill()
	h.start()
	for name, want := range map[string][]string{
		"exits":              {"forged", "lost: exit code 7", "restarted"},
		"killed":             {"forged", "lost: killed by SIGKILL", "restarted"},
		glutton.WorkerSerial: {"forged", "lost: killed by SIGKILL, out of memory", "restarted"},
	} {
		if got := h.events(name); !slices.Equal(got, want) {
			t.Errorf("events of %s: %q, want %q", name, got, want)
		}
	}
	if got := h.events("broken"); len(got) != 3 || got[1] != "lost: killed by SIGKILL" || !strings.HasPrefix(got[2], "failed: ") {
		t.Errorf("events of broken: %q", got)
	}
}

// TestCrashLoopOutlivesHosts has a worker crash in a loop while hosts are killed:
// the next one goes on where the last one ended, up to the end, which it tells.
func TestCrashLoopOutlivesHosts(t *testing.T) {
	launchers(t, crashLoopOutlivesHosts)
}

func crashLoopOutlivesHosts(t *testing.T, h *host) {
	w := h.forge("loops", "rogue")
	is := func(state string, tries int) {
		h.t.Helper()
		h.eventually(fmt.Sprintf("%s after %d tries", state, tries), func() error {
			if w := h.worker("loops"); w.State != state || w.RestartTries != tries {
				return fmt.Errorf("%s after %d tries: %s", w.State, w.RestartTries, w.StateReason)
			}
			return nil
		})
	}
	var sending sync.WaitGroup
	sending.Go(func() { _, _ = h.send("loops", "rogue.doom", map[string]int{"n": 0}) }) // which nobody will answer
	is("restarting", 1)                                                                 // at once
	h.kill()
	sending.Wait()
	began := time.Now()
	h.start()
	is("restarting", 2)
	if took := time.Since(began); took < 8*time.Second { // 10 s, less the jitter
		t.Errorf("the next host tried again after %s", took)
	}
	h.eventually("it says how it ended", func() error {
		if why := h.worker("loops").StateReason; !strings.Contains(why, "before its first heartbeat: exit code 9") {
			return errors.New(why)
		}
		return nil
	})
	h.kill()
	h.change(w, func(row *worker.Worker) { row.RestartTries = 10 })
	h.start()
	is("failed", 10)
	reason := h.worker("loops").StateReason
	for _, want := range []string{"10 restarts without 10m0s of health: it was being restarted: ", "exit code 9", "; its log ends: ", "doomed from the start"} {
		if !strings.Contains(reason, want) {
			t.Errorf("%q is not in %q", want, reason)
		}
	}
	if got := h.events("loops"); got[len(got)-1] != "failed: "+reason {
		t.Errorf("events %q", got)
	}
	if err := os.Remove(filepath.Join(h.dir, "workers/instances", w.WorkerSerial, "state/doomed")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.client.Start(t.Context(), "loops", patience); err != nil {
		t.Error(err)
	}
	is("live", 0)
}

// TestCrashLoopIsNamed: why a worker has failed says how its last run ended, and
// with what words.
func TestCrashLoopIsNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	ends := map[string]string{"killed": "killed by SIGKILL", "glutton": "killed by SIGKILL, out of memory"}
	rows := map[string]client.Worker{}
	var sending sync.WaitGroup
	for name, doom := range map[string]int{"killed": 1, "glutton": 2} { // of the rogue type
		made, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: name, Type: "rogue", ClassCode: "A1", Limits: client.Limits{MemoryBytes: 64 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		rows[name] = made.Worker
		sending.Go(func() { _, _ = h.send(name, "rogue.doom", map[string]int{"n": doom}) }) // which nobody will answer
	}
	for name, end := range ends {
		h.eventually(name+" has crashed as it began", func() error {
			if why := h.worker(name).StateReason; !strings.HasSuffix(why, "before its first heartbeat: "+end) {
				return errors.New(why)
			}
			return nil
		})
	}
	h.kill()
	sending.Wait()
	for _, w := range rows {
		h.change(w, func(row *worker.Worker) { row.RestartTries = 10 })
	}
	h.start()
	for name, end := range ends {
		h.eventually(name+" has failed", func() error {
			if w := h.worker(name); w.State != "failed" {
				return fmt.Errorf("%s after %d tries: %s", w.State, w.RestartTries, w.StateReason)
			}
			return nil
		})
		reason := h.worker(name).StateReason
		for _, want := range []string{"10 restarts without 10m0s of health: ", ": " + end + "; its log ends: ", "doomed from the start"} {
			if !strings.Contains(reason, want) {
				t.Errorf("%s: %q is not in %q", name, want, reason)
			}
		}
		if got := h.events(name); got[len(got)-1] != "failed: "+reason {
			t.Errorf("events of %s: %q", name, got)
		}
	}
}

// TestStopDrains stops workers that are busy: from then on they take nothing new;
// what ends within the grace counts, and who waits for anything else is told.
func TestStopDrains(t *testing.T) {
	t.Parallel()
	for _, launcher := range []string{"containerd", "process"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, launcher)
			for _, test := range []struct {
				name  string
				grace time.Duration
				told  bool // it gets SIGTERM while it is busy
				ends  bool
			}{
				{"is-waited-for", patience, false, true},
				{"is-told", 5 * time.Second, true, true},
				{"is-cut", 300 * time.Millisecond, true, false},
			} {
				result, err := h.stopBusy(test.name, test.grace, test.told, test.ends)
				switch {
				case test.ends && (err != nil || !strings.Contains(string(result.Result), "it ends well")):
					t.Errorf("%s: %s, %v", test.name, result.Result, err)
				case !test.ends && (codeOf(err) != "unavailable" || !strings.Contains(err.Error(), "was taken out of service")):
					t.Errorf("%s: the caller is told %v (%s)", test.name, err, codeOf(err))
				}
			}
			var ends []string
			for _, e := range h.entries() {
				if e.Kind == record.Result {
					ends = append(ends, e.Envelope.Status)
				}
			}
			if want := []string{"ok", "ok", "lost"}; !slices.Equal(ends, want) {
				t.Errorf("results in the record: %q, want %q", ends, want)
			}
		})
	}
}

// stopBusy forges a worker, stops it within a task, which may end once the worker
// is being stopped, and gives what the task's caller hears.
func (h *host) stopBusy(name string, grace time.Duration, told, ends bool) (result client.Result, err error) {
	h.t.Helper()
	w := h.forge(name, "rogue")
	state := filepath.Join(h.dir, "workers/instances", w.WorkerSerial, "state")
	has := func(file string) {
		h.t.Helper()
		h.eventually(name+" "+file, func() error {
			_, err := os.Stat(filepath.Join(state, file))
			return err
		})
	}
	var calls sync.WaitGroup
	calls.Go(func() { result, err = h.send(name, "rogue.linger", map[string]int{"n": 0}) })
	has("lingers")
	calls.Go(func() {
		if _, err := h.client.Stop(h.t.Context(), name, grace); err != nil {
			h.t.Errorf("stop %s: %v", name, err)
		}
	})
	h.eventually(name+" is being stopped", func() error {
		if state := h.worker(name).State; state != "stopped" {
			return errors.New(state)
		}
		return nil
	})
	if _, err := h.send(name, "rogue.count", map[string]int{"n": 0}); codeOf(err) != "worker_unavailable" {
		h.t.Errorf("%s: a worker that is being stopped was asked for more: %v", name, err)
	}
	if told {
		has("told")
	}
	if ends {
		if err := os.WriteFile(filepath.Join(state, "end"), nil, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	calls.Wait()
	if _, err := os.Stat(filepath.Join(state, "told")); (err == nil) != told {
		h.t.Errorf("%s was told to end while it was busy: %t, want %t", name, err == nil, told)
	}
	if left := h.pids(w.WorkerSerial); len(left) != 0 {
		h.t.Errorf("%s is stopped, and runs on: %v", name, left)
	}
	return result, err
}
