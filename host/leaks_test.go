package host

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// TestNothingLeaks: of workers that were forged and retired nothing stays but what
// the record must keep.
func TestNothingLeaks(t *testing.T) { // alone: it counts what this process has
	for _, launcher := range []string{launcherProcess, launcherContainerd} {
		t.Run(launcher, func(t *testing.T) {
			p := startInProcess(t, launcher)
			p.stays()
			p.rounds(0, 10, 4) // whatever is made once
			before := p.inventory()
			p.rounds(10, 20, 4)
			p.wantNothingMore(before, 20)
		})
	}
}

// BenchmarkForgeAndRetire forges and retires a thousand workers under containerd, or
// LEAK_ROUNDS of them, 8 at a time, and reports what stays of each and how long it
// takes to retire one, alone and beside the others. It fails where anything stays
// but what the record must keep.
func BenchmarkForgeAndRetire(b *testing.B) {
	n := 1000
	if text := os.Getenv("LEAK_ROUNDS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		p := startInProcess(b, launcherContainerd)
		p.stays()
		alone := p.rounds(0, 20, 1)
		p.rounds(20, 20, 8)
		before := p.inventory()
		began := time.Now()
		beside := p.rounds(40, n, 8)
		b.ReportMetric(float64(n)/time.Since(began).Seconds(), "rounds/s")
		b.ReportMetric(alone, "ms/retire-alone")
		b.ReportMetric(beside, "ms/retire-of-8")
		after := p.wantNothingMore(before, n)
		for _, what := range slices.Sorted(maps.Keys(after)) {
			b.Logf("%-28s %8d  %+d", what, after[what], after[what]-before[what])
		}
		b.ReportMetric(float64(after[heap]-before[heap])/float64(n), "heap-B/round")
		b.ReportMetric(float64(after[kept]-before[kept])/float64(n), "disk-B/round")
		b.ReportMetric(0, "ns/op")
	}
}

// stays forges a worker that is not retired: its shim, and what that keeps of others,
// lives through all rounds.
func (p *inProcess) stays() {
	p.t.Helper()
	if _, err := p.forgeOne(p.t.Context(), "stays"); err != nil {
		p.t.Fatal(err)
	}
}

// rounds forges and retires n workers, so many at a time, and gives the median of
// how long a retirement took, in milliseconds.
func (p *inProcess) rounds(first, n, width int) float64 {
	p.t.Helper()
	took := make([]float64, n)
	slots := make(chan struct{}, width)
	var all sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			w, err := p.forgeOne(p.t.Context(), fmt.Sprintf("round%d", first+i))
			if err != nil {
				p.t.Errorf("forge: %v", err)
				return
			}
			began := time.Now()
			if _, err := (backend{p.Host}).Retire(p.t.Context(), string(w.Serial), 0); err != nil {
				p.t.Errorf("retire: %v", err)
			}
			took[i] = float64(time.Since(began).Microseconds()) / 1000
		})
	}
	all.Wait()
	if p.t.Failed() {
		p.t.FailNow()
	}
	slices.Sort(took)
	return took[n/2]
}

// What may grow: the rows and the record of each worker, what Go and bolt keep for
// the next, and what is bounded, the registry's pool of connections and the log of
// containerd.
const (
	heap  = "heap, bytes"
	kept  = "registry and record, bytes"
	pool  = "descriptors of the registry"
	state = "containerd's database, bytes"
	said  = "containerd's log, bytes"
)

// mayGrow says by how much, in n rounds.
func mayGrow(what string, n int) int {
	const kib, mib = 1 << 10, 1 << 20
	switch what {
	case heap:
		return mib + n*2*kib
	case kept: // the file grows by steps, and there is a journal of up to 4 MiB beside it
		return 8*mib + n*8*kib
	case pool:
		return 64
	case state: // bolt doubles its file
		return mib + n*kib
	case said:
		return 5 * mib
	}
	return 0
}

// inventory counts what there is of the host, a day after the last retirement and
// with its garbage collected.
func (p *inProcess) inventory() map[string]int {
	p.t.Helper()
	p.ageRetired()
	p.collect(false)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	has := map[string]int{
		heap: int(m.HeapAlloc), "goroutines": runtime.NumGoroutine(),
		"groups of shims": p.shimGroups(),
	}
	ours := func(text string) bool { return strings.Contains(text, p.DataDir) || strings.Contains(text, p.ID()) }
	p.addDescriptors(has)
	has["mounts"] = countMounts("self", ours)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		args, _ := os.ReadFile(dir + "/cmdline")
		groups, _ := os.ReadFile(dir + "/cgroup")
		if !ours(string(args) + string(groups)) {
			continue
		}
		has["processes"]++
		switch {
		case strings.Contains(string(args), "--config"):
			has["descriptors of containerd"] = countDir(dir + "/fd")
			has["mounts that containerd sees"] = countMounts(filepath.Base(dir), ours)
		case strings.Contains(string(args), "containerd-shim"), strings.Contains(string(args), "/containerd/shim"):
			has["descriptors of shims"] += countDir(dir + "/fd")
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/run", "/dev/shm", "/tmp"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.Contains(path, p.ID()) && (root != "/sys/fs/cgroup" || d.IsDir()) {
				has["files in "+root]++
			}
			return nil // what vanishes is not ours
		})
	}
	if _, alone := p.t.(*testing.B); alone { // other tests have shims, whose sockets have no names
		has["sockets of shims"] = countDir("/run/containerd/s")
	}
	p.addDisk(has)
	return has
}

// countMounts counts the mounts that process pid sees and that are ours.
func countMounts(pid string, ours func(string) bool) (n int) {
	mounts, _ := os.ReadFile("/proc/" + pid + "/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if ours(line) {
			n++
		}
	}
	return n
}

func (p *inProcess) addDescriptors(has map[string]int) {
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		switch to, err := os.Readlink(link); {
		case err != nil: // that of the listing itself
		case strings.HasPrefix(to, p.paths.registry):
			has[pool]++
		default:
			has["descriptors of the host"]++
		}
	}
}

func countDir(dir string) int {
	entries, _ := os.ReadDir(dir)
	return len(entries)
}

// addDisk adds what lies in the data folder, apart what may grow.
func (p *inProcess) addDisk(has map[string]int) {
	p.t.Helper()
	err := filepath.WalkDir(p.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has gone
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		switch name, _ := filepath.Rel(p.DataDir, path); {
		case strings.HasPrefix(name, "registry.db"), strings.HasPrefix(name, "record"):
			has[kept] += int(info.Size())
		case strings.HasSuffix(name, "meta.db"):
			has[state] += int(info.Size())
		case strings.HasSuffix(name, "containerd.log"):
			has[said] += int(info.Size())
		case d.IsDir(): // its size is the file system's affair
			has["folders on disk"]++
		default:
			has["files on disk"]++
			has["bytes in files on disk"] += int(info.Size())
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// ageRetired has all retirements be a day old.
func (p *inProcess) ageRetired() {
	p.t.Helper()
	workers, err := p.registry.Workers(p.t.Context(), registry.Filter{IncludeRetired: true})
	if err != nil {
		p.t.Fatal(err)
	}
	workers = slices.DeleteFunc(workers, func(w worker.Worker) bool { return w.State != worker.StateRetired })
	err = p.registry.Update(p.t.Context(), func(tx *registry.Tx) error {
		for _, w := range workers {
			w.RetiredAt = time.Now().Add(-deadFor - time.Minute)
			if err := tx.UpdateWorker(w); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// shimGroups counts the groups that shims have, and the workers in them.
func (p *inProcess) shimGroups() int {
	dir := filepath.Join(p.DataDir, "containerd", "state", shim.Folder)
	groups, _ := filepath.Glob(filepath.Join(dir, "*-*"))
	members, _ := filepath.Glob(filepath.Join(dir, "*-*", "*"))
	return len(groups) + len(members)
}

// wantNothingMore waits until there is no more than there was before n rounds, but for
// what may grow, and gives what there is.
func (p *inProcess) wantNothingMore(before map[string]int, n int) map[string]int {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		after := p.inventory()
		var more []string
		for what, is := range after {
			if is > before[what]+mayGrow(what, n) {
				more = append(more, fmt.Sprintf("%s: %d, were %d", what, is, before[what]))
			}
		}
		if len(more) == 0 {
			return after
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("there is more than there was:\n%s", strings.Join(more, "\n"))
		}
	}
}
