package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkCage measures what each part of a worker's cage costs: `crun run -d` of
// the very specs that a forge made, and of the same with one part left out, each to
// the worker's first heartbeat, one at a time and in turns, so that a noisy machine
// is noisy to all. CPU is that of crun and of the worker alone, from their cgroup.
// It prints what each part adds: the median of the differences to the whole cage,
// turn by turn.
func BenchmarkCage(b *testing.B) {
	c := newCageBench(b)
	c.spent = map[string][]spent{}
	c.turn() // the page cache
	clear(c.spent)
	for b.Loop() {
		for range cageTurns {
			c.turn()
		}
	}
	b.ReportMetric(0, "ns/op")
	whole := c.spent[wholeCage]
	fmt.Printf("the cost of a cage under crun, to the first heartbeat; whole: %.1f ms of CPU, %.1f ms\n",
		median(values(whole, spent.cpuMS)), median(values(whole, spent.wallMS)))
	for _, part := range c.parts[1:] {
		var cpu, wall []float64
		for i, without := range c.spent[part.name] {
			cpu = append(cpu, whole[i].cpuMS()-without.cpuMS())
			wall = append(wall, whole[i].wallMS()-without.wallMS())
			if part.option { // it is not in the whole
				cpu[i], wall[i] = -cpu[i], -wall[i]
			}
		}
		fmt.Printf("%-28s adds median %5.1f ms of CPU, %5.1f ms\n", part.name, median(cpu), median(wall))
	}
}

// cageTurns is how often each container is run in one iteration.
const cageTurns = 20

// cagePart is one that can be left out, or an option that can be added.
type cagePart struct {
	name   string
	drop   func(s *specs.Spec) // or add
	args   []string            // to crun
	option bool
}

const wholeCage = "nothing"

func cageParts() []cagePart {
	parts := []cagePart{
		{name: "seccomp", drop: func(s *specs.Spec) { s.Linux.Seccomp, s.Annotations = nil, nil }}, // or a compiled one
		{name: "limits", drop: dropLimits},
		{name: "cgroups, limits", drop: func(s *specs.Spec) {
			dropLimits(s)
			dropNamespace(s, specs.CgroupNamespace)
		}, args: []string{"--cgroup-manager", "disabled"}},
		{name: "own uid, no privileges", drop: func(s *specs.Spec) {
			all := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"}
			s.Process.User.UID, s.Process.User.GID, s.Process.NoNewPrivileges = 0, 0, false
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		}},
		{name: "masked and read-only paths", drop: func(s *specs.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil }},
		{name: "read-only root", drop: func(s *specs.Spec) { s.Root.Readonly = false }},
		{name: "rlimits", drop: func(s *specs.Spec) { s.Process.Rlimits = nil }},
		{name: "/tmp of its own", drop: func(s *specs.Spec) {
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/tmp" })
		}},
	}
	for _, kind := range []specs.LinuxNamespaceType{
		specs.NetworkNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
	} {
		parts = append(parts, cagePart{name: string(kind) + " namespace", drop: func(s *specs.Spec) { dropNamespace(s, kind) }})
	}
	return append(parts, cagePart{name: "all of these", args: []string{"--cgroup-manager", "disabled"}, drop: func(s *specs.Spec) {
		for _, part := range parts {
			part.drop(s)
		}
	}})
}

// ownUsers is the user namespace that serve --userns adds, with root folders where its
// root can reach them.
func (c *cageBench) ownUsers() cagePart {
	c.b.Helper()
	roots := filepath.Join(c.own, "roots")
	if err := errors.Join(os.Mkdir(roots, 0o711), os.Chmod(c.own, 0o711)); err != nil {
		c.b.Fatal(err)
	}
	c.must(c.inMounts("mount", "--bind", filepath.Join(c.dir, "containerd", "rootfs"), roots))
	return cagePart{name: "user namespace", option: true, drop: func(s *specs.Spec) {
		uid := s.Process.User.UID
		users := []specs.LinuxIDMapping{{HostID: uid + 1, Size: 1}, {ContainerID: uid, HostID: uid, Size: 1}}
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = users, users
		s.Root.Path = filepath.Join(roots, filepath.Base(s.Root.Path))
	}}
}

func dropLimits(s *specs.Spec) { s.Linux.Resources = nil }

func dropNamespace(s *specs.Spec, kind specs.LinuxNamespaceType) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
	if kind == specs.UTSNamespace {
		s.Hostname = ""
	}
}

// spent is what one container took.
type spent struct{ cpu, wall time.Duration }

func (s spent) cpuMS() float64  { return s.cpu.Seconds() * 1000 }
func (s spent) wallMS() float64 { return s.wall.Seconds() * 1000 }

func values(all []spent, of func(spent) float64) (v []float64) {
	for _, s := range all {
		v = append(v, of(s))
	}
	return v
}

type cageBench struct {
	*peers
	group string // the cgroup, relative to a hierarchy
	v2    string // where the hierarchy of v2 is
	begun *os.File
	parts []cagePart
	spent map[string][]spent
	turns int
}

// newCageBench forges a worker and makes a bundle for each container.
func newCageBench(b *testing.B) *cageBench {
	b.Helper()
	c := &cageBench{peers: newPeers(b, 1), parts: append([]cagePart{{name: wholeCage, drop: func(*specs.Spec) {}}}, cageParts()...)}
	c.group = fmt.Sprintf("dals-cage-%d", os.Getpid())
	c.makeGroup()
	c.parts = append(c.parts, c.ownUsers())
	for i, part := range c.parts {
		spec := c.ociSpec(c.serials[0])
		part.drop(spec)
		spec.Linux.CgroupsPath = "/" + c.group + "/worker"
		data, err := json.Marshal(spec)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.MkdirAll(c.bundle(i), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.bundle(i), "config.json"), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() { _ = c.crun(0, "delete", "--force", c.serials[0]).Run() }) // of a run that failed
	return c
}

func (c *cageBench) bundle(i int) string { return filepath.Join(c.own, "cage", fmt.Sprint(i)) }

// makeGroup makes the group that crun is started in: the kernel counts the CPU of
// its processes whether it has a controller for that or not.
func (c *cageBench) makeGroup() {
	c.b.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			c.v2 = dir
		}
	}
	if c.v2 == "" {
		c.b.Fatal("there is no hierarchy of cgroup v2 to count CPU in")
	}
	begin := filepath.Join(c.v2, c.group, "crun")
	if err := os.MkdirAll(begin, 0o755); err != nil {
		c.b.Fatal(err)
	}
	var err error
	if c.begun, err = os.Open(begin); err != nil {
		c.b.Fatal(err)
	}
	c.b.Cleanup(func() {
		_ = c.begun.Close()
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.group)
		for _, dir := range slices.Concat([]string{begin}, groups, []string{filepath.Dir(begin)}) {
			removeGroup(c.b, dir)
		}
	})
}

// removeGroup removes a group whose processes have ended or are about to.
func removeGroup(b *testing.B, dir string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // between two looks
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			b.Errorf("remove %s: %v", dir, err)
			return
		}
	}
}

// used is the CPU of all that ran in the group.
func (c *cageBench) used() (used time.Duration) {
	data, err := os.ReadFile(filepath.Join(c.v2, c.group, "cpu.stat"))
	if err != nil {
		c.b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "usage_usec "); ok {
			var us int64
			_, _ = fmt.Sscan(text, &us)
			used = time.Duration(us) * time.Microsecond
		}
	}
	return used
}

// turn runs each container once, each time beginning with another.
func (c *cageBench) turn() {
	c.b.Helper()
	c.turns++
	one := map[string]spent{}
	for i := range c.parts {
		i = (i + c.turns) % len(c.parts)
		one[c.parts[i].name] = c.run(i)
	}
	for name, took := range one {
		c.spent[name] = append(c.spent[name], took)
	}
}

// run runs one container to its worker's first heartbeat.
func (c *cageBench) run(i int) spent {
	c.b.Helper()
	serial := c.serials[0]
	_ = os.Remove(filepath.Join(c.folder(serial), "run", "worker.sock"))
	log, err := os.OpenFile(filepath.Join(c.folder(serial), "logs", "worker.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		c.b.Fatal(err)
	}
	defer log.Close()
	cpu, began := c.used(), time.Now()
	cmd := c.crun(i, "run", "--detach", "--pid-file", c.pidFile(), "--bundle", c.bundle(i), serial)
	cmd.Stdout, cmd.Stderr = log, log // what outlives the command has no pipe to it
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.begun.Fd())}
	if err := cmd.Run(); err != nil {
		c.b.Fatalf("crun run without %s: %v: %s", c.parts[i].name, err, tail(log.Name()))
	}
	if err := c.awaitHeartbeat(serial); err != nil {
		c.b.Fatalf("without %s: %v: %s", c.parts[i].name, err, tail(log.Name()))
	}
	took := spent{cpu: c.used() - cpu, wall: time.Since(began)}
	c.end(i)
	return took
}

func (c *cageBench) pidFile() string { return filepath.Join(c.own, "pid") }

// end ends the container, which crun alone cannot where it has no cgroup.
func (c *cageBench) end(i int) {
	c.b.Helper()
	text, err := os.ReadFile(c.pidFile())
	if err != nil {
		c.b.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		c.b.Fatalf("kill the worker: %v", err)
	}
	c.must(c.crun(i, "delete", "--force", c.serials[0]))
}

func (c *cageBench) crun(i int, args ...string) *exec.Cmd {
	args = slices.Concat([]string{"crun", "--root", filepath.Join(c.own, "run")}, c.parts[i].args, args)
	return c.inMounts(args...)
}
