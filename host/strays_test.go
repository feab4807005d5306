package host

import (
	"os/exec"
	"path/filepath"
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
	ctr := func(args ...string) string {
		t.Helper()
		args = append([]string{"--address", filepath.Join(p.paths.data, "containerd", "containerd.sock"), "--namespace", "dals-" + p.ID()}, args...)
		text, err := exec.Command("ctr", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ctr %v: %v: %s", args, err, text)
		}
		return string(text)
	}
	const marked, unmarked = "DMN-ZZ-1-00000000-00000", "somebody-elses"
	root := t.TempDir()
	ctr("containers", "create", "--rootfs", "--label", "dals.host="+p.ID(), root, marked, "/program")
	ctr("containers", "create", "--rootfs", root, unmarked, "/program")
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
	if left := strings.Fields(ctr("containers", "list", "--quiet")); len(left) != 1 || left[0] != string(made.Serial) {
		t.Errorf("left: %q", left)
	}
	if told := p.strays.degraded(); len(told) > 0 {
		t.Errorf("still told of: %q", told)
	}
}

// age has a stray be known for so long.
func (p *inProcess) age(name string, known time.Duration) {
	p.strays.mu.Lock()
	defer p.strays.mu.Unlock()
	s := p.strays.seen[worker.Serial(name)]
	s.since = time.Now().Add(-known)
	p.strays.seen[worker.Serial(name)] = s
}
