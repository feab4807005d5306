package forge

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
)

// TestPlan: a plan is what the forge then makes, and it changes nothing.
func TestPlan(t *testing.T) {
	r := newRig(t)
	before := r.fingerprint()
	plan, err := r.forge.Plan(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	if after := r.fingerprint(); after != before {
		t.Errorf("the plan changed something:\n%s\nwas\n%s", after, before)
	}
	if len(plan.Steps) != len(r.forge.steps()) || !strings.Contains(plan.Steps[0].Makes, string(plan.Worker.Serial)) {
		t.Errorf("plan %+v", plan)
	}
	made, err := r.forge.Forge(t.Context(), held(nora, plan.Hash))
	if err != nil {
		t.Fatal(err)
	}
	p, w := plan.Worker, made.Worker
	if p.Serial != w.Serial || p.LedgerCode != w.LedgerCode || p.UID != w.UID || p.ImageDigest != w.ImageDigest || p.PluginDigest != w.PluginDigest {
		t.Errorf("made %+v, planned %+v", w, p)
	}
	again, err := r.forge.Plan(t.Context(), nora)
	if err != nil || len(again.Steps) != 1 || again.Worker.Serial != w.Serial || again.Hash != plan.Hash || again.Files != nil {
		t.Errorf("plan of an existing worker: %+v, %v", again, err)
	}
}

// TestPlannedFiles: what a plan says of files and manifest is what is made, byte
// for byte, but for what depends on keys, numbers or time; and that is no more
// than it must be.
func TestPlannedFiles(t *testing.T) {
	r := newRig(t)
	plan, err := r.forge.Plan(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	made, err := r.forge.Forge(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	dir := r.stage.Dir(made.Worker.Serial)
	if err := os.Remove(filepath.Join(dir, "logs", "worker.log")); err != nil {
		t.Fatal(err) // the launcher's, not the forge's
	}
	var open []string
	found := onDisk(t, dir)
	for i, e := range plan.Files {
		if strings.HasSuffix(e.Path, "/") || e.SHA256 != "" {
			continue
		}
		open = append(open, e.Path)
		at := slices.IndexFunc(found, func(f manifest.Entry) bool { return f.Path == e.Path })
		if at < 0 {
			t.Fatalf("%s was not made", e.Path)
		}
		plan.Files[i].Size, plan.Files[i].SHA256 = found[at].Size, found[at].SHA256
	}
	if want := []string{
		"certs/worker.key", "certs/worker.pem", "identity.json",
		"vault/accountability.json", "vault/reflection.json", "worker_manifest.json", "worker_manifest.sig",
	}; !slices.Equal(want, open) {
		t.Errorf("the plan leaves open %v", open)
	}
	slices.SortFunc(plan.Files, func(a, b manifest.Entry) int { return strings.Compare(a.Path, b.Path) })
	if diff := cmp.Diff(found, plan.Files); diff != "" {
		t.Errorf("planned and made differ:\n%s", diff)
	}

	text, err := os.ReadFile(filepath.Join(dir, manifest.File))
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	p := plan.Manifest
	p.PublicKey, p.Glyph, p.CreatedAt, p.Port = m.PublicKey, m.Glyph, m.CreatedAt, m.Port
	p.Files = listed(plan.Files)
	if planned, err := p.Encode(); err != nil || string(planned) != string(text) {
		t.Errorf("the manifest was planned otherwise (%v):\n%s", err, cmp.Diff(string(text), string(planned)))
	}
}

// onDisk lists a folder as a plan does.
func onDisk(t *testing.T, dir string) (all []manifest.Entry) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		e := manifest.Entry{Path: name + "/", Mode: fmt.Sprintf("%04o", info.Mode().Perm())}
		if !d.IsDir() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			e.Path, e.Size, e.SHA256 = name, info.Size(), hex.EncodeToString(sum[:])
		}
		all = append(all, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b manifest.Entry) int { return strings.Compare(a.Path, b.Path) })
	return all
}

func held(r Request, planHash string) Request {
	r.PlanHash = planHash
	return r
}

// TestPlanIsHeldTo: a forge that is held to a plan makes nothing once something
// of it has changed, and says what.
func TestPlanIsHeldTo(t *testing.T) {
	config := nora
	config.Config = []byte(`{"greeting":"hi"}`)
	class := nora
	class.ClassCode = "B2"
	name := nora
	name.Name = "norbert"
	tests := map[string]struct {
		change func(*rig)
		forge  Request
		want   string // all that is named, in order
	}{
		"nothing":    {func(*rig) {}, nora, ""},
		"config":     {func(*rig) {}, config, `config is now {"greeting":"hi"}`},
		"class code": {func(*rig) {}, class, "class_code is now B2"},
		"name":       {func(*rig) {}, name, "worker_name is now norbert"},
		"new version": {
			func(r *rig) { r.version, r.digest = "1.3.0", strings.Repeat("ab", 32) }, nora,
			"type_version is now 1.3.0; plugin_sha256 is now " + strings.Repeat("ab", 32) + "; image_digest is now sha256:" + strings.Repeat("ab", 32),
		},
		"other bytes": {func(r *rig) { r.digest = fmt.Sprintf("00%062x", 8) }, nora, "plugin_sha256 is now " + fmt.Sprintf("%064x", 8)},
		"host key": {func(r *rig) {
			r.close()
			if err := os.RemoveAll(filepath.Join(r.dir, "keys")); err != nil {
				r.t.Fatal(err)
			}
			r.open(true)
		}, nora, "host_key is now that of host HOST"},
		"launcher": {func(r *rig) { r.launcher.name = "another" }, nora, "launcher is now another"},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			plan, err := r.forge.Plan(t.Context(), nora)
			if err != nil {
				t.Fatal(err)
			}
			test.change(r)
			_, err = r.forge.Forge(t.Context(), held(test.forge, plan.Hash))
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			want := "not what was planned: " + strings.ReplaceAll(test.want, "HOST", r.keys.HostID()) + ": conflict"
			if !errors.Is(err, worker.ErrConflict) || err.Error() != want || worker.HintOf(err) == "" {
				t.Errorf("%v, want %s", err, want)
			}
			r.nothingLeft(what, 0)
			if n := len(r.entries()); n != 0 {
				t.Errorf("%d entries", n)
			}
		})
	}
}

// TestPlanHash: the same plan has the same hash whoever forged meanwhile, and
// what is no hash of a plan is refused as such.
func TestPlanHash(t *testing.T) {
	r := newRig(t)
	first, err := r.forge.Plan(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	other := nora
	other.Name = "other"
	if _, err := r.forge.Forge(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	second, err := r.forge.Plan(t.Context(), nora)
	if err != nil || second.Hash != first.Hash || second.Worker.Serial == first.Worker.Serial {
		t.Errorf("%s of %s, then %s of %s (%v)", first.Hash, first.Worker.Serial, second.Hash, second.Worker.Serial, err)
	}
	if !regexp.MustCompile(`^p3-[0-9a-f]{64}-[0-9a-f]{104}$`).MatchString(first.Hash) {
		t.Errorf("hash %s", first.Hash)
	}
	for _, bad := range []string{"x", "p1", "p2", "p3", first.Hash[:len(first.Hash)-1], first.Hash + "00000000", first.Hash[:len(first.Hash)-8], "p2" + first.Hash[2:], strings.ToUpper(first.Hash), first.Hash + "\n"} {
		if _, err := r.forge.Forge(t.Context(), held(nora, bad)); !errors.Is(err, worker.ErrInvalid) || worker.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	forged := strings.Replace(first.Hash, first.Hash[3:67], strings.Repeat("0", 64), 1) // each mark is right
	if _, err := r.forge.Forge(t.Context(), held(nora, forged)); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("marks alone: %v", err)
	}
}

// TestPlanOfAnExistingWorker: a forge that is repeated with its plan finds what
// it made, also when a newer version has become the default.
func TestPlanOfAnExistingWorker(t *testing.T) {
	r := newRig(t)
	plan, err := r.forge.Plan(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	for _, existed := range []bool{false, true} {
		made, err := r.forge.Forge(t.Context(), held(nora, plan.Hash))
		if err != nil || made.Existed != existed {
			t.Fatalf("existed %t, %v", made.Existed, err)
		}
		r.version, r.digest = "1.3.0", strings.Repeat("ab", 32)
	}
	class := nora
	class.Name, class.ClassCode = "nils", "B2"
	strange, err := r.forge.Plan(t.Context(), class)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.forge.Forge(t.Context(), held(nora, strange.Hash))
	if !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "worker_name is now nora; type_version is now 1.2.3; ") {
		t.Errorf("with the plan of another worker: %v", err)
	}
}

// fingerprint is all that a plan must leave as it is.
func (r *rig) fingerprint() string {
	r.t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(r.dir, "workers"), func(path string, _ os.DirEntry, err error) error {
		fmt.Fprintln(&all, path)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	workers, err := r.registry.Workers(r.t.Context(), registry.Filter{IncludeRetired: true})
	if err != nil {
		r.t.Fatal(err)
	}
	fmt.Fprintln(&all, workers, len(r.entries()))
	return all.String()
}
