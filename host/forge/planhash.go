package forge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/dals-host/dals-host/host/worker"
)

// A plan's hash says what was planned and, when that is no longer so, which part
// of it has changed: it is the version of this form, a SHA-256 over all parts,
// which is what it is compared by, and four bytes of each part's own SHA-256,
// which only tell the parts apart. docs/formats/plan.md has the form.

const (
	planVersion = "p3"
	markBytes   = 4
)

var planForm = regexp.MustCompile(`^` + planVersion + `-[0-9a-f]{64}-((?:[0-9a-f]{8})+)$`)

// part is one thing that decides what a forge makes.
type part struct {
	name  string
	value string // what is hashed
	now   string // as an error tells it
}

// mark tells a part's values apart.
func (p part) mark() string {
	sum := sha256.Sum256([]byte(p.value))
	return hex.EncodeToString(sum[:markBytes])
}

// parts are all that decides what a forge makes of w, but the numbers, which
// depend on who forges first. Their order is part of the form.
func (f *Forge) parts(w worker.Worker) []part {
	var layout strings.Builder
	for _, e := range f.planFiles(w) {
		fmt.Fprintln(&layout, e.Mode, e.Path)
	}
	return []part{
		plain("forge_version", worker.ForgeVersion),
		{"host_key", string(f.Authority.CertPEM()), "that of host " + f.Keys.HostID()},
		plain("launcher", w.Launcher),
		plain("worker_name", w.Name),
		plain("worker_type", w.Type),
		plain("type_version", w.TypeVersion),
		plain("plugin_sha256", w.PluginDigest),
		plain("class_code", string(w.ClassCode)),
		plain("config", string(w.Config)),
		{"grants", strings.Join(w.Grants, " "), grantWords(w.Grants)},
		plain("limits", limitWords(f.Spec(w).Limits)),
		plain("image_digest", w.ImageDigest),
		{"files", layout.String(), "another list of paths and modes"},
	}
}

// limitWords are limits as a plan has them.
func limitWords(l worker.Limits) string {
	return fmt.Sprintf("memory_bytes=%d cpu_millis=%d pids=%d", l.MemoryBytes, l.CPUMillis, l.PIDs)
}

func plain(name, value string) part { return part{name, value, value} }

// planHash is the hash of a plan with these parts.
func planHash(parts []part) string {
	named := make([][2]string, len(parts))
	var marks strings.Builder
	for i, p := range parts {
		named[i] = [2]string{p.name, p.value}
		marks.WriteString(p.mark())
	}
	text, _ := json.Marshal(named) // strings always marshal
	sum := sha256.Sum256(text)
	return planVersion + "-" + hex.EncodeToString(sum[:]) + "-" + marks.String()
}

// holdTo is a conflict that names what has changed since the plan was made of
// which hash is the hash, or nil where that is nothing.
func (f *Forge) holdTo(hash string, w worker.Worker) error {
	parts := f.parts(w)
	if hash == "" || hash == planHash(parts) {
		return nil
	}
	form := planForm.FindStringSubmatch(hash)
	if form == nil || len(form[1]) != len(parts)*2*markBytes {
		return worker.Hint(fmt.Errorf("plan hash %.40q: %w", hash, worker.ErrInvalid), "give the whole plan_hash that forge --dry-run prints")
	}
	var changed []string
	for i, p := range parts {
		if form[1][i*2*markBytes:][:2*markBytes] != p.mark() {
			changed = append(changed, fmt.Sprintf("%s is now %.200s", p.name, p.now))
		}
	}
	if len(changed) == 0 { // four bytes of each were the same by chance, or by somebody's work
		changed = []string{"something that its hash does not tell apart"}
	}
	return worker.Hint(fmt.Errorf("not what was planned: %s: %w", strings.Join(changed, "; "), worker.ErrConflict),
		"run forge --dry-run again, look at the new plan, and give its plan_hash")
}

// holdJobTo is holdTo for a worker that is yet to be made.
func (f *Forge) holdJobTo(ctx context.Context, hash string, j *job) (err error) {
	if hash == "" {
		return nil
	}
	if j.worker.ImageDigest, err = f.Launcher.ImageDigest(ctx, j.typ.Image); err != nil {
		return err
	}
	return f.holdTo(hash, j.worker)
}
