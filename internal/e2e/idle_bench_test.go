package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/sdk/client"
)

// BenchmarkIdle measures what containerised workers cost that have nothing to do:
// memory (their share of what processes share, of the worker and its shim) and CPU
// (of worker, shim, containerd and host), each worker giving a sign of life every
// two seconds. It fails when one of them is lost or started again. IDLE is how long
// they are watched, 20s where it is not given.
func BenchmarkIdle(b *testing.B) {
	watch := 20 * time.Second
	if text := os.Getenv("IDLE"); text != "" {
		var err error
		if watch, err = time.ParseDuration(text); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range []int{10, 200, 1000} {
		b.Run(fmt.Sprintf("workers=%d", n), func(b *testing.B) {
			h := newContainerHost(b, containerd.Crun)
			atOnce(b, n, benchAtOnce, func(i int) error {
				_, err := h.client.Forge(b.Context(), client.ForgeRequest{Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1"})
				return err
			})
			for b.Loop() {
				h.idle(n, watch)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// idle watches n workers and reports what they cost.
func (h *host) idle(n int, watch time.Duration) {
	h.t.Helper()
	b := h.t.(*testing.B)
	time.Sleep(rest)
	before, began := h.cpu(), time.Now()
	late := 0
	for end := began.Add(watch); time.Now().Before(end); time.Sleep(2 * time.Second) { // a heartbeat
		late += h.late(n)
	}
	took := time.Since(began)
	used := h.cpu() - before
	var memory float64
	for pid, text := range h.own() {
		if strings.Contains(text, "dals-worker") || strings.Contains(text, "containerd-shim") {
			memory += pss(pid)
		}
	}
	b.ReportMetric(memory/float64(n), "MiB/worker")
	b.ReportMetric(100*used.Seconds()/took.Seconds()/float64(n), "%core/worker")
	b.ReportMetric(float64(late), "late-heartbeats")
}

// late counts the workers whose sign of life is due and not there yet. One that is not
// live, was started again, or has left out a sign of life, is fatal.
func (h *host) late(n int) (late int) {
	h.t.Helper()
	workers, err := h.client.Workers(h.t.Context(), client.WorkerFilter{})
	if err != nil {
		h.t.Fatal(err)
	}
	if len(workers) != n {
		h.t.Fatalf("%d workers of %d", len(workers), n)
	}
	for _, w := range workers {
		if w.State != "live" || w.Restarts > 0 {
			h.t.Fatalf("%s is %s (%s), restarted %d times", w.WorkerName, w.State, w.StateReason, w.Restarts)
		}
		if w.Heartbeat.Missed > 1 {
			h.t.Fatalf("%s was last heard of at %s", w.WorkerName, w.Heartbeat.Last)
		}
		if w.Heartbeat.Missed > 0 {
			late++
		}
	}
	return late
}

// own are the processes of this host, of its containerd and of its workers.
func (h *host) own() map[int]string {
	own := map[int]string{}
	for pid, text := range processes() {
		if strings.Contains(text, h.dir) || strings.Contains(text, "dals-"+h.id) {
			own[pid] = text
		}
	}
	return own
}

// cpu is what they have used: fields 14 and 15 of proc_pid_stat(5), in hundredths
// of a second.
func (h *host) cpu() (used time.Duration) {
	for pid := range h.own() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, _ := strconv.Atoi(field)
			used += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return used
}

// pss is a process's share of memory, in MiB: proc_pid_smaps(5).
func pss(pid int) float64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "Pss:"); ok {
			var kib float64
			_, _ = fmt.Sscan(text, &kib)
			return kib / 1024
		}
	}
	return 0
}
