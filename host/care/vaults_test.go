package care

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// rolledBack is a folder whose record, and registry, are of before a worker was
// forged that is still there, and saw more of the record than there is now.
func rolledBack(t *testing.T) (g *rig, late worker.Worker) {
	t.Helper()
	g = newRig(t)
	g.forge("nora")
	g.publish()
	g.must(g.registry.Snapshot(t.Context(), g.at("old.db")))
	if said, err := exec.Command("cp", "-a", g.at("record"), g.at("old")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	g.forge("otto")
	g.publish()
	late = g.forge("late")
	g.close()
	g.must(errors.Join(os.RemoveAll(g.at("record")), os.Rename(g.at("old"), g.at("record")), os.Rename(g.at("old.db"), g.at("registry.db"))))
	return g, late
}

func toldOf(found *Recovered, serial worker.Serial) bool {
	return slices.ContainsFunc(found.Differences, func(d Difference) bool {
		return d.WorkerSerial == serial && d.Look && strings.Contains(d.What, "the record does not extend what this worker saw")
	})
}

// A record that was rolled back together with its registry agrees with that. The
// vault of a worker tells.
func TestRecoverHearsVaults(t *testing.T) {
	t.Parallel()
	g, late := rolledBack(t)
	found, err := g.recover(nil)
	g.must(err)
	if found.Rebuilt || !toldOf(found, late.Serial) {
		t.Errorf("found %+v", found)
	}
	g.damage(t, nil)
	before := contents(t, g.dir)
	if _, err := g.recover(nil); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), string(late.Serial)+" saw of it") ||
		!strings.Contains(worker.HintOf(err), "--accept-loss") {
		t.Fatalf("%v, hint %q", err, worker.HintOf(err))
	}
	if diff := cmp.Diff(before, contents(t, g.dir)); diff != "" {
		t.Errorf("a refused recovery changed:\n%s", diff)
	}
	accept := func(c *RecoverConfig) { c.AcceptLoss = true }
	found, err = g.recover(accept)
	g.must(err)
	if !found.Rebuilt || !toldOf(found, late.Serial) {
		t.Errorf("found %+v", found)
	}
	r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
	g.must(err)
	last := lastEntry(t, r)
	verify(t, g.dir, g.keys, r)
	g.must(r.Close())
	if last.Recovery == nil || last.Recovery.Lost != 1 {
		t.Errorf("last entry %+v", last)
	}
	// What was given up is told of, and not refused again.
	g.damage(t, nil)
	found, err = g.recover(nil)
	if err != nil || !toldOf(found, late.Serial) {
		t.Errorf("%v, found %+v", err, found)
	}
}

// Only what this host signed speaks against its record.
func TestRecoverHearsNobodyElse(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(file string) error{
		"gone":        os.Remove,
		"no document": func(file string) error { return os.WriteFile(file, []byte("{"), 0o440) },
		"a pipe":      func(file string) error { return errors.Join(os.Remove(file), exec.Command("mkfifo", file).Run()) },
		"a link":      func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/dev/zero", file)) },
		"unsigned": func(file string) error {
			text, err := os.ReadFile(file)
			return errors.Join(err, os.WriteFile(file, []byte(strings.Replace(string(text), "/record\\n", "/record\\n9", 1)), 0o440))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, late := rolledBack(t)
			g.must(change(g.at("workers/instances/" + string(late.Serial) + "/vault/accountability.json")))
			g.damage(t, nil)
			found, err := g.recover(nil)
			g.must(err)
			if toldOf(found, late.Serial) || !found.NeedsAttention() {
				t.Errorf("found %+v", found)
			}
		})
	}
}
