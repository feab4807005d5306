package host

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// TestUnknownContainers: what somebody has made in the host's place is left alone
// for its grace, whether or not it looks like a worker. Then a collection takes
// what does not run.
func TestUnknownContainers(t *testing.T) {
	t.Parallel()
	p := startInProcess(t, launcherContainerd)
	made, err := p.forgeOne(t.Context(), "nora")
	if err != nil {
		t.Fatal(err)
	}
	const marked, unmarked = "DMN-ZZ-1-00000000-00000", "somebody-elses"
	root := t.TempDir()
	p.ctr("containers", "create", "--rootfs", "--label", "dals.host="+p.ID(), root, marked, "/program")
	p.ctr("containers", "create", "--rootfs", root, unmarked, "/program")
	p.wantGarbage(nil)
	told := strings.Join(p.strays.degraded(), "\n")
	for _, name := range []string{marked, unmarked} {
		if !strings.Contains(told, name+" (running: false)") {
			t.Errorf("nothing is told of %s: %q", name, told)
		}
	}
	p.age(marked, strayGrace-time.Minute)
	p.wantGarbage(nil)
	p.age(marked, strayGrace)
	p.wantGarbage([]string{"container " + marked})
	p.age(unmarked, strayGrace)
	p.wantGarbage([]string{"container " + unmarked})
	if left := strings.Fields(p.ctr("containers", "list", "--quiet")); len(left) != 1 || left[0] != string(made.Serial) {
		t.Errorf("left: %q", left)
	}
	if told := p.strays.degraded(); len(told) > 0 {
		t.Errorf("still told of: %q", told)
	}
}

// TestUnknownContainerRuns: what runs is told of and left alone for as long as it
// runs, also where it was started after it was found not to.
func TestUnknownContainerRuns(t *testing.T) {
	t.Parallel()
	p := startInProcess(t, launcherContainerd)
	root := sleeperRoot(t)
	const runs, begins = "DMN-ZZ-1-00000000-00000", "somebody-elses"
	p.ctr("run", "--detach", "--rootfs", "--label", "dals.host="+p.ID(), root, runs, "/program", "sleep")
	p.ctr("containers", "create", "--rootfs", root, begins, "/program", "sleep")
	p.wantGarbage(nil)
	p.age(runs, 2*strayGrace)
	p.wantGarbage(nil)
	if told := strings.Join(p.strays.degraded(), "\n"); !strings.Contains(told, runs+" (running: true)") {
		t.Errorf("nothing is told of what runs: %q", told)
	}
	p.age(begins, 2*strayGrace)
	found, err := backend{p.Host}.idleStrays(t.Context())
	if err != nil || len(found) != 1 || found[0].Name != begins {
		t.Fatalf("idle are %+v, %v", found, err)
	}
	p.ctr("tasks", "start", "--detach", begins)
	if err := found[0].delete(); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("what has been started meanwhile is removed: %v", err)
	}
	p.wantGarbage(nil)
	tasks := p.ctr("tasks", "list")
	for _, name := range []string{runs, begins} {
		if !regexp.MustCompile(`(?m)^` + name + `\s+\d+\s+RUNNING`).MatchString(tasks) {
			t.Errorf("%s does not run any more:\n%s", name, tasks)
		}
		p.ctr("tasks", "kill", "--signal", "SIGKILL", name)
	}
	p.eventually("what has ended may be collected", func() bool {
		p.age(runs, 2*strayGrace)
		p.age(begins, 2*strayGrace)
		return len(p.collect(true)) == 2
	})
	p.wantGarbage([]string{"container " + runs, "container " + begins})
	if err := os.Remove(filepath.Join("/run/containerd/runc", "dals-"+p.ID())); err != nil { // ctr's, not the host's
		t.Error(err)
	}
}

// sleeperRoot is a folder to run a container from: /program sleep.
func sleeperRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"proc", "sys", "dev", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "program"), "github.com/dals-host/dals-host/internal/e2e/rogue")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build rogue: %v\n%s", err, text)
	}
	return dir
}

// ctr runs containerd's own client in the host's place.
func (p *inProcess) ctr(args ...string) string {
	p.t.Helper()
	args = append([]string{"--address", filepath.Join(p.paths.data, "containerd", "containerd.sock"), "--namespace", "dals-" + p.ID()}, args...)
	text, err := exec.Command("ctr", args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("ctr %v: %v: %s", args, err, text)
	}
	return string(text)
}

// age has a stray be known for so long.
func (p *inProcess) age(name string, known time.Duration) {
	p.strays.mu.Lock()
	defer p.strays.mu.Unlock()
	s := p.strays.seen[worker.Serial(name)]
	s.since = time.Now().Add(-known)
	p.strays.seen[worker.Serial(name)] = s
}
