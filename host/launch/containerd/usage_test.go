package containerd

import (
	"errors"
	"os"
	"path/filepath"
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
	const serial = "DMN-TP-1-deadbeef-00001"
	for name, test := range map[string]struct {
		roots []string // below the mount
		files map[string]string
	}{
		"v1": {[]string{"memory", "cpuacct", "pids"}, map[string]string{
			"memory/{}/memory.usage_in_bytes": "9437184\n",
			"memory/{}/memory.stat":           "cache 4096\nrss 8388608\ninactive_file 1\ntotal_cache 4096\ntotal_inactive_file 1048576\n",
			"cpuacct/{}/cpuacct.usage":        "1250000000\n",
			"pids/{}/pids.current":            "7\n",
		}},
		"v2": {[]string{""}, map[string]string{
			"cgroup.controllers": "cpu memory pids\n",
			"{}/memory.current":  "9437184\n",
			"{}/memory.stat":     "anon 8388608\nfile 4096\nactive_file 1\ninactive_file 1048576\n",
			"{}/cpu.stat":        "usage_usec 1250000\nuser_usec 1000000\nsystem_usec 250000\n",
			"{}/pids.current":    "7\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mount := t.TempDir()
			group := namespace("test") + "/" + serial
			write := func(path, text string) {
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			for _, root := range test.roots {
				write(filepath.Join(mount, root, "cgroup.procs"), "")
			}
			place := func(path string) string {
				dir, file, found := strings.Cut(path, "{}/")
				if !found {
					return filepath.Join(mount, path)
				}
				return filepath.Join(mount, dir, group, file)
			}
			for path, text := range test.files {
				write(place(path), text)
			}
			c, err := newCgroups(mount, "test")
			if err != nil {
				t.Fatal(err)
			}
			u, err := c.usage(serial)
			if err != nil || u.MemoryBytes != 8<<20 || u.CPU != 1250*time.Millisecond || u.PIDs != 7 {
				t.Errorf("%+v, %v", u, err)
			}
			for path := range test.files {
				if path == "cgroup.controllers" {
					continue
				}
				text, _ := os.ReadFile(place(path))
				write(place(path), "what is this\n")
				if u, err := c.usage(serial); err == nil || errors.Is(err, worker.ErrNotFound) || u != (worker.Usage{}) {
					t.Errorf("%s: %+v, %v", path, u, err)
				}
				write(place(path), string(text))
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
