package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// TestRelease: a worker that crun has made is started without executing crun, and crun
// takes it for running; runc starts those that it has made.
func TestRelease(t *testing.T) {
	onRuntimes(t, func(t *testing.T, b *launchtest.Bench) {
		l := launcher(b)
		runtime, asked := l.tools.runtime, filepath.Join(t.TempDir(), "asked")
		l.tools.runtime = filepath.Join(t.TempDir(), "runtime")
		script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", asked, runtime)
		must(t, os.WriteFile(l.tools.runtime, []byte(script), 0o700))
		g := b.Guest()
		text, err := os.ReadFile(asked)
		must(t, err)
		verbs := strings.Fields(string(text))
		if !slices.Contains(verbs, "create") {
			t.Fatalf("the runtime was asked to %q", text)
		}
		if started := slices.Contains(verbs, "start"); started == (filepath.Base(runtime) == Crun) {
			t.Errorf("the runtime was asked to %q", text)
		}
		root := filepath.Join(l.site.runcRoot(), l.site.namespace)
		said, err := exec.Command(runtime, "--root", root, "state", string(g.Spec.Serial)).Output()
		must(t, err)
		var state struct {
			Status string
			PID    int
		}
		must(t, json.Unmarshal(said, &state))
		if s, _ := b.Status(g.Spec.Serial); state.Status != "running" || state.PID != s.PID {
			t.Errorf("the runtime takes it for %+v, it is process %d", state, s.PID)
		}
	})
}
