package forge

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/manifest"
)

const (
	toA = "egress:a.org:443"
	toB = "egress:b.org:80"
)

func granting(grants ...string) Request {
	r := nora
	r.Grants = grants
	return r
}

// TestGrants: what is granted stands in the row, the record, the plan, the
// manifest, and the files that make use of it.
func TestGrants(t *testing.T) {
	r := newRig(t)
	r.asks = []string{toB, toA}
	plan, err := r.forge.Plan(t.Context(), granting(toA))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(plan.NotGranted, []string{toB}) || !slices.Equal(plan.Manifest.Grants, []string{toA}) || plan.Manifest.Format != manifest.FormatGranted {
		t.Errorf("plan %+v", plan)
	}
	inject := plan.Steps[slices.IndexFunc(plan.Steps, func(s PlanStep) bool { return s.Step == "inject" })]
	if !strings.Contains(inject.Makes, "granted: "+toA+"; asked for and not granted: "+toB) {
		t.Errorf("plan says %q", inject.Makes)
	}
	made, err := r.forge.Forge(t.Context(), held(granting(toA, toA), plan.Hash))
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.registry.Worker(t.Context(), made.Worker.Serial)
	if err != nil || !slices.Equal(w.Grants, []string{toA}) {
		t.Fatalf("%q, %v", w.Grants, err)
	}
	dir := r.stage.Dir(w.Serial)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	m, err := manifest.Check(root, r.keys.Manifest().Public())
	if err != nil || !slices.Equal(m.Grants, []string{toA}) {
		t.Fatalf("manifest %+v, %v", m, err)
	}
	granted, _ := capability.Set(w.Grants)
	hosts, err := os.ReadFile(filepath.Join(dir, "etc", "hosts"))
	if err != nil || string(hosts) != string(capability.Hosts(granted)) {
		t.Errorf("hosts %q, %v", hosts, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "door")); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("door %v, %v", info, err)
	}
	entries := r.entries()
	if last := entries[len(entries)-1]; last.Kind != record.Forge || !slices.Equal(last.Worker.Grants, []string{toA}) {
		t.Errorf("entry %+v", last)
	}
}

// TestNoGrants: a worker without has nothing of all that, whatever its type asks
// for.
func TestNoGrants(t *testing.T) {
	r := newRig(t)
	r.asks = []string{toA}
	made, err := r.forge.Forge(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	dir := r.stage.Dir(made.Worker.Serial)
	for _, name := range []string{"etc", "door"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, manifest.File))
	if err != nil || !strings.Contains(string(text), `"format": 1,`) || strings.Contains(string(text), "grants") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestRefusedGrants(t *testing.T) {
	r := newRig(t)
	r.asks = []string{toA}
	for grant, says := range map[string]string{
		toB:                  "grant " + toB + ": template 1.2.3 does not ask for it",
		"root":               "of no known kind",
		"egress:A.org:443":   "lower case",
		"egress:a.org":       "egress:HOST:PORT",
		"egress:a.org:443 x": "port",
	} {
		_, err := r.forge.Forge(t.Context(), granting(grant))
		if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), says) || worker.HintOf(err) == "" {
			t.Errorf("%s: %v", grant, err)
		}
	}
}

// TestOtherGrants: another grant is another request, and another plan.
func TestOtherGrants(t *testing.T) {
	r := newRig(t)
	r.asks = []string{toA, toB}
	plan, err := r.forge.Plan(t.Context(), granting(toA, toB))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.forge.Forge(t.Context(), held(granting(toA), plan.Hash))
	if !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "grants is now "+toA) {
		t.Errorf("held to another plan: %v", err)
	}
	if _, err := r.forge.Forge(t.Context(), granting(toB, toA)); err != nil {
		t.Fatal(err)
	}
	again, err := r.forge.Forge(t.Context(), granting(toA, toB))
	if err != nil || !again.Existed {
		t.Errorf("in another order: %+v, %v", again, err)
	}
	for _, other := range []Request{nora, granting(toA)} {
		_, err := r.forge.Forge(t.Context(), other)
		if !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "grants is "+toA+", "+toB+", asked for") {
			t.Errorf("%q: %v", other.Grants, err)
		}
	}
	like, err := r.forge.Forge(t.Context(), Request{Name: "tom", Like: "nora"})
	if err != nil || !slices.Equal(like.Worker.Grants, []string{toA, toB}) {
		t.Errorf("like: %q, %v", like.Worker.Grants, err)
	}
}

// TestUpgradeGrants: a version that asks for more gets no more than was granted,
// one that asks for less keeps nothing else, and undone it is as it was.
func TestUpgradeGrants(t *testing.T) {
	r := newRig(t)
	r.asks = []string{toA, toB}
	made, err := r.forge.Forge(t.Context(), granting(toA))
	if err != nil {
		t.Fatal(err)
	}
	serial := made.Worker.Serial
	r.others = map[string]string{"1.3.0": strings.Repeat("ab", 32), "1.4.0": strings.Repeat("cd", 32)}
	r.asks = []string{toA, toB, "egress:c.org:1"}
	w, _, err := r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.3.0"})
	if err != nil || !slices.Equal(w.Grants, []string{toA}) {
		t.Fatalf("asks for more: %q, %v", w.Grants, err)
	}
	r.asks = []string{toB}
	r.noBeat = errors.New("ill")
	if _, _, err := r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.4.0"}); err == nil {
		t.Fatal("an ill version was taken")
	}
	if w, err := r.registry.Worker(t.Context(), serial); err != nil || !slices.Equal(w.Grants, []string{toA}) {
		t.Errorf("undone: %q, %v", w.Grants, err)
	}
	r.noBeat = nil
	w, _, err = r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.4.0"})
	if err != nil || len(w.Grants) != 0 {
		t.Errorf("asks for other: %q, %v", w.Grants, err)
	}
	if _, err := os.Stat(filepath.Join(r.stage.Dir(serial), "door")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its door: %v", err)
	}
}
