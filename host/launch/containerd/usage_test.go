package containerd

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// TestUsageInCgroups reads what a worker uses, as this machine's kernel counts it.
func TestUsageInCgroups(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	g.Report() // it is up
	u, err := b.Launcher.Usage(t.Context(), g.Spec.Serial)
	if err != nil || u.MemoryBytes < 1<<20 || u.MemoryBytes > 1<<30 || u.CPU <= 0 || u.CPU > time.Minute || u.PIDs < 2 || u.PIDs > 100 || time.Since(u.At) > time.Minute {
		t.Errorf("%+v, %v", u, err)
	}
	b.Stop(g.Spec.Serial, 0)
	if u, err := b.Launcher.Usage(t.Context(), g.Spec.Serial); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("of a stopped worker: %+v, %v", u, err)
	}
}

// TestUsageOfBothVersions reads files laid out as the kernel lays them out.
func TestUsageOfBothVersions(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]map[string]string{
		"v1": {
			"memory/cgroup.procs": "", "cpuacct/cgroup.procs": "", "pids/cgroup.procs": "",
			"memory/{}/memory.usage_in_bytes": "9437184\n",
			"memory/{}/memory.stat":           "cache 4096\nrss 8388608\ninactive_file 1\ntotal_cache 4096\ntotal_inactive_file 1048576\n",
			"cpuacct/{}/cpuacct.usage":        "1250000000\n",
			"pids/{}/pids.current":            "7\n",
		},
		"v2": {
			"cgroup.controllers": "cpu memory pids\n",
			"{}/memory.current":  "9437184\n",
			"{}/memory.stat":     "anon 8388608\nfile 4096\nactive_file 1\ninactive_file 1048576\n",
			"{}/cpu.stat":        "usage_usec 1250000\nuser_usec 1000000\nsystem_usec 250000\n",
			"{}/pids.current":    "7\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fakeCgroups(t, files)
			u, err := c.usage(aGroup)
			if err != nil || u.MemoryBytes != 8<<20 || u.CPU != 1250*time.Millisecond || u.PIDs != 7 {
				t.Errorf("%+v, %v", u, err)
			}
			for path, text := range files {
				if !strings.Contains(path, "{}") {
					continue
				}
				writeGroup(t, c.mount, path, "what is this\n")
				if u, err := c.usage(aGroup); err == nil || errors.Is(err, worker.ErrNotFound) || u != (worker.Usage{}) {
					t.Errorf("%s: %+v, %v", path, u, err)
				}
				writeGroup(t, c.mount, path, text)
			}
			if _, err := c.usage("DMN-TP-1-deadbeef-00002"); !errors.Is(err, worker.ErrNotFound) {
				t.Errorf("of no worker: %v", err)
			}
		})
	}
}

// BenchmarkUsage is what one worker costs whoever asks for its usage.
func BenchmarkUsage(b *testing.B) {
	bench := launchtest.NewBench(b, open)
	g := bench.Guest()
	for b.Loop() {
		if _, err := bench.Launcher.Usage(b.Context(), g.Spec.Serial); err != nil {
			b.Fatal(err)
		}
	}
}
