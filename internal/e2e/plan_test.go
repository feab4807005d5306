package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/manifest"
)

// TestPlanAndApply: what a dry run says is what is then made, byte for byte, and
// what has changed since is named.
func TestPlanAndApply(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		request := client.ForgeRequest{Name: "nora", Type: "template", ClassCode: "A1"}
		dry := request
		dry.DryRun = true
		plan, err := h.client.Forge(t.Context(), dry)
		if err != nil {
			t.Fatal(err)
		}
		if (plan.ImageDigest != "") != (h.launcher == "containerd") {
			t.Errorf("planned image %q", plan.ImageDigest)
		}
		other := request
		other.PlanHash, other.Config = plan.PlanHash, map[string]string{"greeting": "hi"}
		if _, err := h.client.Forge(t.Context(), other); codeOf(err) != client.CodeConflict || !strings.Contains(err.Error(), `not what was planned: config is now {"greeting":"hi"}: conflict`) {
			t.Errorf("another config: %v", err)
		}
		request.PlanHash = plan.PlanHash
		made, err := h.client.Forge(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if made.WorkerSerial != plan.WorkerSerial || made.LedgerCode != plan.LedgerCode || made.ImageDigest != plan.ImageDigest {
			t.Errorf("planned %+v, made %+v", plan.Worker, made.Worker)
		}
		h.asPlanned(plan, made.Worker)
	})
}

// asPlanned compares a worker's folder and manifest with what was planned. What a
// plan cannot know is filled in from what was made.
func (h *host) asPlanned(plan client.Forged, made client.Worker) {
	h.t.Helper()
	dir := filepath.Join(h.dir, "workers", "instances", made.WorkerSerial)
	found := h.listed(dir)
	var planned []manifest.Entry
	for _, f := range plan.Files {
		e := manifest.Entry{Path: f.Path, Mode: f.Mode, Size: f.Size, SHA256: f.SHA256}
		if i := slices.IndexFunc(found, func(e manifest.Entry) bool { return e.Path == f.Path }); i >= 0 && f.SHA256 == "" {
			e.Size, e.SHA256 = found[i].Size, found[i].SHA256
		}
		planned = append(planned, e)
	}
	slices.SortFunc(planned, byPath)
	if diff := cmp.Diff(found, planned); diff != "" {
		h.t.Errorf("made (-) and planned (+) files differ:\n%s", diff)
	}
	text, err := os.ReadFile(filepath.Join(dir, manifest.File))
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := manifest.Decode(text)
	if err != nil {
		h.t.Fatal(err)
	}
	var p manifest.Manifest
	if err := json.Unmarshal(plan.Manifest, &p); err != nil {
		h.t.Fatal(err)
	}
	p.PublicKey, p.Glyph, p.CreatedAt, p.Port = m.PublicKey, m.Glyph, m.CreatedAt, m.Port
	for i, e := range p.Files {
		if e.SHA256 == "" && i < len(m.Files) && m.Files[i].Path == e.Path {
			p.Files[i].Size, p.Files[i].SHA256 = m.Files[i].Size, m.Files[i].SHA256
		}
	}
	if again, err := p.Encode(); err != nil || string(again) != string(text) {
		h.t.Errorf("made (-) and planned (+) manifest differ (%v):\n%s", err, cmp.Diff(string(text), string(again)))
	}
	if len(p.Modules) == 0 {
		h.t.Error("no module was planned")
	}
}

func byPath(a, b manifest.Entry) int { return strings.Compare(a.Path, b.Path) }

// listed lists a worker's folder as a plan does, without what was put there since
// it was made.
func (h *host) listed(dir string) (all []manifest.Entry) {
	h.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := manifest.Entry{Path: name + "/", Mode: fmt.Sprintf("%04o", info.Mode().Perm())}
		if d.IsDir() {
			all = append(all, e)
			if name == "state" || name == "run" || name == "logs" {
				return filepath.SkipDir // what is in it is the worker's, or the launcher's
			}
			return nil
		}
		data, err := os.ReadFile(path)
		sum := sha256.Sum256(data)
		e.Path, e.Size, e.SHA256 = name, int64(len(data)), hex.EncodeToString(sum[:])
		all = append(all, e)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	slices.SortFunc(all, byPath)
	return all
}
