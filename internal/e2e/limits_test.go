package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dals-host/dals-host/sdk/client"
)

// groupFile is what the kernel says in a file of a worker's cgroup, under cgroup v1,
// where it is below its controller's hierarchy, or v2.
func (h *host) groupFile(serial, controller, v1, v2 string) string {
	h.t.Helper()
	group := filepath.Join("dals-"+h.id, serial)
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, group, v1))
	if errors.Is(err, os.ErrNotExist) {
		text, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", group, v2))
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// number is the first number of a text, or that behind one of the keys if there are any.
func (h *host) number(text string, keys ...string) int64 {
	h.t.Helper()
	words := strings.Fields(text)
	for i, word := range words {
		if slices.Contains(keys, word) {
			words = words[i+1:]
			break
		}
	}
	n, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		h.t.Fatalf("%v in %q", err, text)
	}
	return n
}

// held are the limits that the kernel holds a worker to.
func (h *host) held(serial string) client.Limits {
	h.t.Helper()
	quota := h.groupFile(serial, "cpu", "cpu.cfs_quota_us", "cpu.max")
	period := h.groupFile(serial, "cpu", "cpu.cfs_period_us", "cpu.max")
	period = period[strings.LastIndex(period, " ")+1:] // with v2 it stands behind the quota
	return client.Limits{
		MemoryBytes: h.number(h.groupFile(serial, "memory", "memory.limit_in_bytes", "memory.max")),
		CPUMillis:   h.number(quota) * 1000 / h.number(period),
		PIDs:        h.number(h.groupFile(serial, "pids", "pids.max", "pids.max")),
	}
}

// holds checks that the kernel, and the host's word of it, have a worker's limits.
func (h *host) holds(w client.Worker, want client.Limits, when string) {
	h.t.Helper()
	if got := h.held(w.WorkerSerial); got != want {
		h.t.Errorf("%s: %s is held to %+v, want %+v", when, w.WorkerName, got, want)
	}
	if got := h.worker(w.WorkerName).Limits; got == nil || *got != want {
		h.t.Errorf("%s: %s is said to have %+v, want %+v", when, w.WorkerName, got, want)
	}
}

// TestLimitsOfTypes: what a type asks for is what the kernel holds its workers to, but
// for what nobody gets, and no worker of a type that asks for too little is forged.
func TestLimitsOfTypes(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	h.dropChameleon(map[string]string{"1.0.0": "well", "1.1.0": "needs", "1.2.0": "greedy"})
	for version, want := range map[string]client.Limits{
		"1.0.0": {MemoryBytes: 256 << 20, CPUMillis: 1000, PIDs: 256},
		"1.1.0": {MemoryBytes: 96 << 20, CPUMillis: 250, PIDs: 100},
		"1.2.0": {MemoryBytes: 1 << 30, CPUMillis: int64(runtime.NumCPU()) * 1000, PIDs: 1024},
	} {
		made, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: "of-" + version, Type: "chameleon", ClassCode: "A1", Version: version})
		if err != nil {
			t.Fatal(err)
		}
		h.holds(made.Worker, want, "forged")
	}
	h.mustRun("upgrade", "of-1.0.0", "--version", "1.1.0")
	h.holds(h.worker("of-1.0.0"), client.Limits{MemoryBytes: 96 << 20, CPUMillis: 250, PIDs: 100}, "upgraded")
	h.starves()
}

// starves drops a version that asks for less than a worker comes up with.
func (h *host) starves() {
	h.t.Helper()
	path := h.dropVersion("1.3.0", "starves")
	h.eventually("what asks for too little is quarantined", func() error {
		plugins, err := h.client.Plugins(h.t.Context())
		for _, p := range plugins {
			if p.Path == path && p.State == "quarantined" && strings.Contains(p.Reason, "resources: 1 processes: from 16") && p.Fix != "" {
				return nil
			}
		}
		return fmt.Errorf("%+v, %w", plugins, err)
	})
}

// TestLimitsStay: the limits of a forge hold over all that happens to a worker, and its
// port tells of them, and of what it uses, what the kernel does.
func TestLimitsStay(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	h.dropChameleon(map[string]string{"1.0.0": "needs"})
	h.mustRun("forge", "--type", "chameleon", "--name", "otto", "--class-code", "A1", "--memory", "64MiB", "--cpus", "0.5", "--pids", "64")
	w := h.worker("otto")
	for _, step := range []struct {
		when string
		act  func()
	}{
		{"forged", func() {}},
		{"restarted", func() { h.mustRun("restart", "otto") }},
		{"stopped and started", func() { h.mustRun("stop", "otto"); h.mustRun("start", "otto") }},
		{"upgraded", func() { h.mustRun("upgrade", "otto", "--set", "word=two") }},
		{"the host was killed", func() { h.next(h.kill) }},
		{"killed with the host", func() { h.kill(); h.signal(w.WorkerSerial, syscall.SIGKILL); h.start() }},
		{"down and up", func() { h.next(h.down) }},
	} {
		step.act()
		h.comesBack("otto")
		h.holds(w, client.Limits{MemoryBytes: 64 << 20, CPUMillis: 500, PIDs: 64}, step.when)
	}
	if got := h.about("otto"); got.Word != "two" {
		t.Errorf("after the upgrade it says %+v", got)
	}
	h.countsAsKernel(w)
}

// countsAsKernel compares what a worker's port tells of its use with its cgroup.
func (h *host) countsAsKernel(w client.Worker) {
	h.t.Helper()
	serial := w.WorkerSerial
	pids := func() float64 { return float64(h.number(h.groupFile(serial, "pids", "pids.current", "pids.current"))) }
	h.eventually("the port counts as the kernel does", func() error {
		busy, threads := h.processorTime(serial).Seconds(), pids()
		m := h.metrics(w)
		for name, want := range map[string]float64{
			"dals_worker_memory_limit_bytes": 64 << 20, "dals_worker_cpu_limit_cores": 0.5, "dals_worker_pids_limit": 64, "dals_worker_pids": threads,
		} {
			if m[name] != want {
				return fmt.Errorf("%s is %v, want %v", name, m[name], want)
			}
		}
		if cpu, most := m["dals_worker_cpu_seconds_total"], h.processorTime(serial).Seconds(); cpu < busy-1e-6 || cpu > most+1e-6 {
			return fmt.Errorf("%v s of CPU, not %v to %v", cpu, busy, most)
		}
		stat := h.groupFile(serial, "memory", "memory.stat", "memory.stat")
		least := h.number(stat, "total_rss", "anon") // of v1 and v2
		most := h.number(h.groupFile(serial, "memory", "memory.usage_in_bytes", "memory.current"))
		if memory := m["dals_worker_memory_bytes"]; memory < 0.9*float64(least) || memory > 1.1*float64(most) || least == 0 {
			return fmt.Errorf("%v bytes of memory, not %d to %d", memory, least, most)
		}
		return nil
	})
}

// metrics are the numbers that a worker's port tells.
func (h *host) metrics(w client.Worker) map[string]float64 {
	h.t.Helper()
	r, err := web.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", w.Port)) //nolint:noctx // a test's own port
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil && name != "#" {
			all[name] = n
		}
	}
	return all
}
