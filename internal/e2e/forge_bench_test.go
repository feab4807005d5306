package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/sdk/client"
)

// The size of the measurement: so many workers, so many of them at a time.
const (
	benchWorkers = 50
	benchAtOnce  = 8
)

// BenchmarkForge measures complete forges to the first verified heartbeat
// against `ctr run -d` of the same containers: the very specs that a forge
// made (binary, seccomp, limits, namespaces, mounts), in the folders that it
// made, on a containerd with the same configuration, counted to the first
// heartbeat as well. ctr makes no numbers, keys, certificates, manifests or
// entries. One iteration is one round of both, and rounds take turns at who is
// first; ratio is ctr's time over ours, so above 1 the forge is faster. Both run
// under the OCI runtimes that the sub-benchmarks name; ctr's own choice is runc.
func BenchmarkForge(b *testing.B) {
	for _, r := range []struct{ ours, ctrs string }{
		{containerd.Crun, containerd.Runc},
		{containerd.Crun, containerd.Crun},
		{containerd.Runc, containerd.Runc},
	} {
		b.Run(fmt.Sprintf("forge=%s/ctr=%s", r.ours, r.ctrs), func(b *testing.B) { forgeAgainstCtr(b, r.ours, r.ctrs) })
	}
}

func forgeAgainstCtr(b *testing.B, ours, ctrs string) {
	c := newCtrBench(b, ctrs)
	steps := map[string][]float64{}
	var forge, ctr, ratio, forgeCPU, ctrCPU []float64
	for round := 1; b.Loop(); round++ {
		var forged, ran cost
		if round%2 == 0 {
			forged, ran = forgeAll(b, ours, benchWorkers, benchAtOnce, steps), c.runAll()
		} else {
			ran, forged = c.runAll(), forgeAll(b, ours, benchWorkers, benchAtOnce, steps)
		}
		forge, ctr = append(forge, forged.perSecond()), append(ctr, ran.perSecond())
		forgeCPU, ctrCPU = append(forgeCPU, forged.cpuEach()), append(ctrCPU, ran.cpuEach())
		ratio = append(ratio, ran.took.Seconds()/forged.took.Seconds())
		b.Logf("forge %.1f/s, %.0f ms of CPU each; ctr %.1f/s, %.0f ms; ratio %.2f",
			forged.perSecond(), forged.cpuEach(), ran.perSecond(), ran.cpuEach(), ran.took.Seconds()/forged.took.Seconds())
	}
	b.ReportMetric(median(forge), "forges/s")
	b.ReportMetric(median(ctr), "ctr-runs/s")
	b.ReportMetric(median(forgeCPU), "cpu-ms/forge")
	b.ReportMetric(median(ctrCPU), "cpu-ms/ctr-run")
	b.ReportMetric(median(ratio), "ratio")
	b.ReportMetric(0, "ns/op")
	var table strings.Builder
	for _, name := range stepNames {
		fmt.Fprintf(&table, "\n%-18s median %6.1f ms", name, median(steps[name]))
	}
	fmt.Printf("where the time of one of %d forges at once goes, under %s:%s\n", benchAtOnce, ours, &table)
}

// newContainerHost starts a host whose containers run under an OCI runtime.
func newContainerHost(b *testing.B, runtime string) *host {
	b.Helper()
	h := &host{t: b, launcher: "containerd", flags: []string{"--runtime", runtime}}
	h.setup()
	return h
}

var stepNames = []string{
	"allocate", "open stage", "generate keys", "inject", "prepare image", "write manifest",
	"promote stage", "create container", "start", "await heartbeat", "record",
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// forgeAll forges the workers on a new host and takes it down.
func forgeAll(b *testing.B, runtime string, n, width int, steps map[string][]float64) cost {
	b.Helper()
	h := newContainerHost(b, runtime)
	h.forge("warm", "template") // the image and the page cache
	c := measure(b, n, width, func(i int) error {
		_, err := h.client.Forge(b.Context(), client.ForgeRequest{Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1"})
		return err
	})
	stepTimes(h.log.String(), steps)
	h.down()
	return c
}

// claimAll forges the workers, one after the other, on a new host that has a container
// ready for each, and takes it down.
func claimAll(b *testing.B, runtime string, n int, steps map[string][]float64) cost {
	b.Helper()
	const ready = 2
	h := &host{t: b, launcher: "containerd", flags: []string{"--runtime", runtime, "--warm", fmt.Sprintf("template=%d", ready)}}
	h.setup()
	h.awaitWarm(ready)
	h.forge("warm", "template") // the page cache
	h.awaitWarm(ready + 1)
	c := measureAlone(b, n, func(i int) error {
		_, err := h.client.Forge(b.Context(), client.ForgeRequest{Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1"})
		return err
	}, func(i int) { h.awaitWarm(ready + 2 + i) }) // what was claimed is made good: that counts as the forge's CPU
	stepTimes(h.log.String(), steps)
	if claimed := strings.Count(h.log.String(), "is claimed"); claimed != n+1 {
		b.Fatalf("%d of %d forges claimed a container", claimed, n+1)
	}
	h.down()
	return c
}

// awaitWarm waits until the host has made so many containers beforehand.
func (h *host) awaitWarm(n int) {
	h.t.Helper()
	h.eventually("containers kept warm", func() error {
		if made := strings.Count(h.log.String(), "a worker is kept warm"); made < n {
			return fmt.Errorf("%d of %d were made", made, n)
		}
		return nil
	})
}

// cost is what all of the workers cost.
type cost struct {
	n    int
	took time.Duration
	cpu  time.Duration // the whole machine's
	each []float64     // of each worker alone, in milliseconds
}

func (c cost) perSecond() float64 { return float64(c.n) / c.took.Seconds() }

// cpuEach is in milliseconds.
func (c cost) cpuEach() float64 { return c.cpu.Seconds() * 1000 / float64(c.n) }

// rest is how long the machine is left alone before it is measured: memory that
// has just been freed is cheaper to get than any other.
const rest = 4 * time.Second

// measure runs one call for each of n workers, so many at a time.
func measure(b *testing.B, n, width int, call func(i int) error) cost {
	b.Helper()
	if width == 1 {
		return measureAlone(b, n, call, func(int) {})
	}
	time.Sleep(rest)
	each := make([]float64, n)
	cpu, began := cpuTime(b), time.Now()
	atOnce(b, n, width, func(i int) error {
		began := time.Now()
		err := call(i)
		each[i] = time.Since(began).Seconds() * 1000
		return err
	})
	return cost{n: n, took: time.Since(began), cpu: cpuTime(b) - cpu, each: each}
}

// apart is how long the machine is left alone before each of those that are measured
// alone: what the one before has begun comes to an end.
const apart = 100 * time.Millisecond

// measureAlone measures calls of which each has the machine for itself. What comes
// after a call, and after, counts as its CPU and not as its time.
func measureAlone(b *testing.B, n int, call func(i int) error, after func(i int)) cost {
	b.Helper()
	time.Sleep(rest)
	c, cpu := cost{n: n}, cpuTime(b)
	for i := range n {
		time.Sleep(apart)
		began := time.Now()
		if err := call(i); err != nil {
			b.Fatal(err)
		}
		took := time.Since(began)
		c.each, c.took = append(c.each, took.Seconds()*1000), c.took+took
		after(i)
	}
	time.Sleep(apart)
	c.cpu = cpuTime(b) - cpu
	return c
}

// cpuTime is what all processes and the kernel have used: the first three
// numbers of proc_stat(5), in hundredths of a second.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	var user, nice, system time.Duration
	if _, err := fmt.Sscanf(string(data), "cpu %d %d %d", &user, &nice, &system); err != nil {
		b.Fatal(err)
	}
	return (user + nice + system) * 10 * time.Millisecond
}

// atOnce runs n calls, so many at a time.
func atOnce(b *testing.B, n, width int, call func(i int) error) {
	b.Helper()
	slots := make(chan struct{}, width)
	var all sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := call(i); err != nil {
				b.Error(err)
			}
		})
	}
	all.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

var stepLine = regexp.MustCompile(`forge step: worker=w\d+ step="?([a-z ]+?)"? took="?([^"\n]+)"?`)

// stepTimes reads how long each step of each forge took from the host's log.
func stepTimes(log string, steps map[string][]float64) {
	for _, m := range stepLine.FindAllStringSubmatch(log, -1) {
		if took, err := time.ParseDuration(m[2]); err == nil {
			steps[m[1]] = append(steps[m[1]], float64(took.Microseconds())/1000)
		}
	}
}
