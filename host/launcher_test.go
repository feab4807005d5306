package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/worker"
)

// TestDecideLauncher runs as root with containerd installed, as make test sees
// to.
func TestDecideLauncher(t *testing.T) {
	t.Parallel()
	contained := []worker.Worker{{Name: "nora", Launcher: launcherContainerd}}
	plain := []worker.Worker{{Name: "leo", Launcher: launcherProcess}}
	tests := []struct {
		asked      string
		containerd string
		living     []worker.Worker
		want       string
		says       string
	}{
		{"process", "", nil, launcherProcess, "as asked for"},
		{"process", "private", nil, launcherProcess, "as asked for"},
		{"containerd", "", nil, launcherContainerd, "as asked for"},
		{"auto", "", nil, launcherContainerd, "there is containerd"},
		{"", "private", nil, launcherContainerd, "there is containerd"},
		{"auto", "", plain, launcherProcess, "the workers that live"},
		{"auto", "", contained, launcherContainerd, "the workers that live"},
		{"auto", "/run/c.sock", nil, launcherContainerd, "under the containerd at /run/c.sock"},
		{"containerd", "/run/c.sock", contained, launcherContainerd, "under the containerd at /run/c.sock"},
	}
	for _, test := range tests {
		name, reason, err := decideLauncher(t.Context(), Config{Launcher: test.asked, Containerd: test.containerd}, test.living)
		if err != nil || name != test.want || !strings.Contains(reason, test.says) {
			t.Errorf("%q with %v: %s (%s), %v", test.asked, test.living, name, reason, err)
		}
	}
	if _, _, err := decideLauncher(t.Context(), Config{Launcher: "docker"}, nil); !errors.Is(err, worker.ErrInvalid) || worker.HintOf(err) == "" {
		t.Errorf("docker: %v", err)
	}
}

func TestPickLauncherRefuses(t *testing.T) {
	t.Parallel()
	c := Config{DataDir: t.TempDir(), Launcher: "process", Logger: hclog.NewNullLogger()}
	living := []worker.Worker{{Name: "nora", Launcher: launcherContainerd}}
	// A worker never restarts under another launcher.
	_, _, err := pickLauncher(t.Context(), c, "0123456789abcdef", living)
	if !errors.Is(err, worker.ErrConflict) || !strings.Contains(worker.HintOf(err), "--launcher containerd") {
		t.Errorf("another launcher: %v (%s)", err, worker.HintOf(err))
	}
	c.UserNS = true
	if _, _, err := pickLauncher(t.Context(), c, "0123456789abcdef", nil); !errors.Is(err, worker.ErrInvalid) || !strings.Contains(worker.HintOf(err), "--userns") {
		t.Errorf("the process launcher with user namespaces: %v (%s)", err, worker.HintOf(err))
	}
	c.Containerd = "/run/containerd/containerd.sock"
	if _, _, err := pickLauncher(t.Context(), c, "0123456789abcdef", nil); !errors.Is(err, worker.ErrInvalid) || worker.HintOf(err) == "" {
		t.Errorf("the process launcher with a containerd: %v", err)
	}
}
