package containerd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// TestCage asks a worker what it can see and do.
func TestCage(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	checkCage(t, b, b.Guest(), b.Guest())
}

// checkCage asks worker g what it can see and do.
func checkCage(t *testing.T, b *launchtest.Bench, g, other *launchtest.Guest) {
	t.Helper()
	r := g.Report()
	for key, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "Umask": "0077",
	} {
		if r.Status[key] != want {
			t.Errorf("%s is %q, want %q", key, r.Status[key], want)
		}
	}
	if !slices.Equal(r.Interfaces, []string{"lo"}) {
		t.Errorf("its interfaces are %q", r.Interfaces)
	}
	if r.Hostname != strings.ToLower(string(g.Spec.Serial)) {
		t.Errorf("its hostname is %q", r.Hostname)
	}
	if r.Processes != 1 {
		t.Errorf("it sees %d processes", r.Processes)
	}
	checkMounts(t, r.Mounts, usersOf(t, int(first(t, b, g.Spec.Serial))) != usersOf(t, os.Getpid()))
	for _, path := range []string{"/", "/etc", "/dev", "/worker", "/proc/sys/kernel/core_pattern", "/dals-worker"} {
		if got := g.Ask("write " + path + "/x"); got == "ok" {
			t.Errorf("%s can be written", path)
		}
	}
	for _, path := range []string{b.Config.DataDir, other.Spec.Dir, "/home", "/root", "/var", "/run", "/sys/kernel", "/proc/kcore", "/worker/logs"} {
		if got := g.Ask("read " + path); got == "ok" {
			t.Errorf("%s can be read", path)
		}
	}
	if got := g.Ask("write /tmp/x"); got != "ok" {
		t.Errorf("/tmp cannot be written: %s", got)
	}
}

// devices are mounted where nobody can make them: with user namespaces.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom"}

func checkMounts(t *testing.T, lines []string, users bool) {
	t.Helper()
	want := map[string]string{ // mount point: options that it must have
		"/": "ro", "/proc": "nosuid,nodev,noexec", "/dev": "nosuid,noexec", "/tmp": "nosuid,nodev,noexec",
		"/worker": "ro,nosuid,nodev,noexec", "/worker/state": "rw,nosuid,nodev,noexec", "/worker/run": "rw,nosuid,nodev,noexec",
	}
	for _, line := range lines {
		fields := strings.Fields(line)
		point, options := fields[4], strings.Split(fields[5], ",")
		if strings.HasPrefix(point, "/proc/") || users && slices.Contains(devices, point) { // masked and read-only paths
			continue
		}
		must, ok := want[point]
		if !ok {
			t.Errorf("it sees a mount at %s", point)
			continue
		}
		delete(want, point)
		for option := range strings.SplitSeq(must, ",") {
			if !slices.Contains(options, option) {
				t.Errorf("%s is mounted %v, without %s", point, options, option)
			}
		}
	}
	for point := range want {
		t.Errorf("it does not see %s", point)
	}
}

// TestSystemCalls: what the cage refuses is refused, and what workers need works.
func TestSystemCalls(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	var got map[string]string
	b.Guest().Get("syscalls", &got)
	for name, problem := range got {
		allowed := name == "unix socket" || name == "inet socket" || name == "inet6 socket"
		if allowed != (problem == "") {
			t.Errorf("%s: %q", name, problem)
		}
	}
	// Only EPERM shows that the filter said no: mount and unshare fail anyhow.
	for _, name := range []string{"mount", "unshare", "ptrace", "vm_readv", "packet socket", "vsock socket", "alg socket", "bpf", "keyctl", "io_uring"} {
		if got[name] != unix.EPERM.Error() {
			t.Errorf("%s: %q, want %q", name, got[name], unix.EPERM)
		}
	}
}

// TestMemoryLimit: a worker that takes too much is killed, and that is said.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	spec := b.Spec()
	spec.Limits = worker.Limits{MemoryBytes: 64 << 20}
	g := b.Start(spec)
	g.Provoke("allocate 200")
	exit := b.Wait(spec.Serial)
	if !exit.OOMKilled || exit.Code != 137 || exit.Signal != "SIGKILL" {
		t.Fatalf("its end is %+v", exit)
	}
	if want := "killed by SIGKILL, out of memory"; exit.String() != want {
		t.Errorf("its end reads %q, want %q", exit, want)
	}
	b.Stop(spec.Serial, 0)
	if again := b.Wait(spec.Serial); again != exit {
		t.Errorf("after the stop its end is %+v, want %+v", again, exit)
	}
}

// TestLimits reads the limits where the kernel keeps them.
func TestLimits(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	spec := b.Spec()
	spec.Limits = worker.Limits{CPUMillis: 500, PIDs: 40}
	g := b.Start(spec)
	g.Provoke("fork 60") // whether the worker survives that is its own affair
	path := launcher(b).cgroups.path(spec.Serial)
	for file, want := range map[[2]string]string{ // v1 and v2
		{"cpu/" + path + "/cpu.cfs_quota_us", path + "/cpu.max"}:            "50000",
		{"cpu/" + path + "/cpu.cfs_period_us", path + "/cpu.max"}:           "100000",
		{"memory/" + path + "/memory.limit_in_bytes", path + "/memory.max"}: "268435456",
		{"pids/" + path + "/pids.max", path + "/pids.max"}:                  "40",
	} {
		if got := readCgroup(t, file); !slices.Contains(strings.Fields(got), want) {
			t.Errorf("%s is %q, want %s", file, got, want)
		}
	}
	if got := readCgroup(t, [2]string{"pids/" + path + "/pids.events", path + "/pids.events"}); strings.TrimSpace(got) == "max 0" {
		t.Error("60 processes did not meet a limit of 40")
	}
}

func readCgroup(t *testing.T, file [2]string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(cgroupRoot, file[0]))
	if err != nil {
		data, err = os.ReadFile(filepath.Join(cgroupRoot, file[1]))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
