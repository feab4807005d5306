package launchtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/launch"
)

// ownFilesOnly: a worker writes state/ and run/ only. Without root a worker
// process has the host's uid, and no launcher can promise that.
func ownFilesOnly(t *testing.T, b *Bench) {
	g := b.Guest()
	dir := envOf(g.Report().Env, launch.EnvDir)
	if dir == "" {
		t.Fatalf("%s is not set", launch.EnvDir)
	}
	for _, path := range []string{"state/x", "run/x"} {
		if got := g.Ask("write " + filepath.Join(dir, path)); got != "ok" {
			t.Errorf("%s cannot be written: %s", path, got)
		}
		if _, err := os.Stat(filepath.Join(g.Spec.Dir, path)); err != nil {
			t.Errorf("what it wrote is not in its folder: %v", err)
		}
	}
	if got := g.Ask("read " + filepath.Join(dir, "identity.json")); got != "ok" {
		t.Errorf("identity.json cannot be read: %s", got)
	}
	if os.Geteuid() != 0 {
		return
	}
	other := b.Guest()
	for _, path := range []string{
		filepath.Join(dir, "x"), filepath.Join(dir, "identity.json"), filepath.Join(dir, "logs/x"),
		filepath.Join(dir, "logs/worker.log"), "/x", "/etc/x", "/dals-worker",
		filepath.Join(other.Spec.Dir, "state/x"), b.Image.Path,
	} {
		if got := g.Ask("write " + path); got == "ok" {
			t.Errorf("%s can be written", path)
		}
	}
	for _, path := range []string{
		filepath.Join(dir, "logs"), other.Spec.Dir, filepath.Join(other.Spec.Dir, "identity.json"),
		b.Config.DataDir, filepath.Dir(g.Spec.Dir),
	} {
		if got := g.Ask("read " + path); got == "ok" {
			t.Errorf("%s can be read", path)
		}
	}
}

// ownIdentity: a worker has its uid, nothing of the host's, and cannot rise.
func ownIdentity(t *testing.T, b *Bench) {
	t.Helper()
	g := b.Guest()
	r := g.Report()
	if r.UID != g.Spec.UID || (os.Geteuid() == 0 && (r.GID != g.Spec.UID || len(r.Groups) > 0)) {
		t.Errorf("uid %d, gid %d, groups %v; want %d", r.UID, r.GID, r.Groups, g.Spec.UID)
	}
	for key, want := range map[string]string{
		"NoNewPrivs": "1",
		"CapEff":     "0000000000000000",
		"CapPrm":     "0000000000000000",
		"CapAmb":     "0000000000000000",
	} {
		if r.Status[key] != want {
			t.Errorf("%s is %q, want %q", key, r.Status[key], want)
		}
	}
	if r.Cwd != "/" {
		t.Errorf("it works in %s", r.Cwd)
	}
	for _, v := range r.Env {
		if !strings.HasPrefix(v, "DALS_WORKER_") && v != "HOME=/" { // runc adds that
			t.Errorf("it has %s in its environment", v)
		}
	}
	for _, target := range r.Descriptors {
		if strings.HasPrefix(target, b.Config.DataDir) && target != b.Image.Path &&
			!strings.Contains(target, string(g.Spec.Serial)) {
			t.Errorf("it has %s open", target)
		}
	}
	if len(r.Args) != 1 {
		t.Errorf("its arguments are %q", r.Args)
	}
}

func envOf(env []string, name string) string {
	for _, v := range env {
		if key, value, _ := strings.Cut(v, "="); key == name {
			return value
		}
	}
	return ""
}
