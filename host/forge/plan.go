package forge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/manifest"
)

// Plan is what a forge would do.
type Plan struct {
	Worker worker.Worker // without what is known only once it is made
	Steps  []PlanStep
	// Files are all files and folders of the worker, its own folder first. Size
	// and SHA256 are empty for folders, and for files that depend on keys, numbers
	// or the time of the forge.
	Files []manifest.Entry
	// Manifest is the worker's manifest, without its keys, its port, its time, and
	// what Files does not know. It and Files are absent where nothing would be made.
	Manifest *manifest.Manifest
	// NotGranted is what the worker's type asks for and the request does not grant.
	NotGranted []string
	Hash       string // of all that decides what would be made, see Request.PlanHash
}

// PlanStep is one step and what it would make.
type PlanStep struct{ Step, Makes string }

// errPlanned takes back the allocation that a plan only looks at.
var errPlanned = errors.New("planned only")

// Plan says what Forge would make, from the same lists of steps and files, and
// makes nothing. The numbers are those that a forge would get at this moment, but
// the port, which is drawn by lot: it stays 0.
func (f *Forge) Plan(ctx context.Context, r Request) (Plan, error) {
	r, err := f.resolve(ctx, r)
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return Plan{}, err
	}
	existing, found, err := f.existing(ctx, r)
	if err != nil {
		return Plan{}, err
	}
	if found {
		return Plan{Worker: existing, Hash: planHash(f.parts(existing)), Steps: []PlanStep{
			{"find existing", "nothing: this request has made " + string(existing.Serial)},
		}}, nil
	}
	j, err := f.newJob(ctx, r)
	if err != nil {
		return Plan{}, err
	}
	defer j.release()
	if j.worker.ImageDigest, err = f.Launcher.ImageDigest(ctx, j.typ.Image); err != nil {
		return Plan{}, err
	}
	if err := f.planNumbers(ctx, j); err != nil {
		return Plan{}, err
	}
	p := Plan{Worker: j.worker, Hash: planHash(f.parts(j.worker)), Files: f.planFiles(j.worker), NotGranted: notGranted(j.typ, r.Grants)}
	p.Manifest = f.manifestOf(j.worker, j.typ, listed(p.Files))
	for _, s := range f.stepsOf(r) {
		p.Steps = append(p.Steps, PlanStep{s.name, s.makes(j)})
	}
	return p, nil
}

// planNumbers gives the job the numbers that a forge would get, and takes them
// back.
func (f *Forge) planNumbers(ctx context.Context, j *job) error {
	listener, err := f.Ports.Bind(ctx) // only to see that one is free
	if err != nil {
		return err
	}
	defer listener.Close()
	ready, _ := f.warmth.find(j.fits)
	err = f.Registry.Update(ctx, func(tx *registry.Tx) error {
		if err := f.allocateIn(tx, &j.worker, ready); err != nil {
			return err
		}
		return errPlanned
	})
	if !errors.Is(err, errPlanned) {
		return fmt.Errorf("plan numbers: %w", err)
	}
	return nil
}

// planFiles is every file and folder that the steps would write.
func (f *Forge) planFiles(w worker.Worker) []manifest.Entry {
	var entries []manifest.Entry
	for _, file := range slices.Concat(folders(w), f.keyFiles(w, nil, nil), injected(w, nil, nil, nil), seals(w, nil, nil)) {
		e := manifest.Entry{Path: file.path, Mode: fmt.Sprintf("%04o", file.access.Mode.Perm())}
		if file.data != nil {
			sum := sha256.Sum256(file.data)
			e.Size, e.SHA256 = int64(len(file.data)), hex.EncodeToString(sum[:])
		}
		entries = append(entries, e)
	}
	return entries
}

// listed are the entries that a manifest lists, in its order.
func listed(all []manifest.Entry) []manifest.Entry {
	entries := slices.DeleteFunc(slices.Clone(all), func(e manifest.Entry) bool {
		switch e.Path {
		case "./", launch.StateDir + "/", launch.RunDir + "/", launch.LogsDir + "/", manifest.DoorDir + "/", manifest.File, manifest.SignatureFile:
			return true
		}
		return false
	})
	slices.SortFunc(entries, func(a, b manifest.Entry) int { return strings.Compare(a.Path, b.Path) })
	return entries
}

func planAllocate(j *job) string {
	w := j.worker
	return fmt.Sprintf("serial %s, model %s, ledger code %s, uid %d, a free port of the host's range", w.Serial, w.Model, w.LedgerCode, w.UID)
}

func planStage(j *job) string {
	return "workers/.stage/" + string(j.worker.Serial) + "/ with " + names(folders(j.worker)[1:])
}

func (f *Forge) planKeys(j *job) string {
	return "an Ed25519 key of the worker's own and its certificate: " + names(f.keyFiles(j.worker, nil, nil))
}

func planInject(j *job) string {
	made := names(injected(j.worker, nil, nil, nil))
	if len(j.worker.Grants) > 0 {
		made += "; granted: " + grantWords(j.worker.Grants)
	}
	if not := notGranted(j.typ, j.worker.Grants); len(not) > 0 {
		made += "; asked for and not granted: " + grantWords(not)
	}
	return made
}

// notGranted is what a type asks for beyond the grants.
func notGranted(t Type, grants []string) []string {
	return capability.NotGranted(t.Descriptor.GetCapabilities(), grants)
}

func (f *Forge) planImage(j *job) string {
	plugin := "plugin sha256:" + j.worker.PluginDigest
	if j.worker.ImageDigest == "" {
		return "nothing: " + f.Launcher.Name() + " runs " + plugin + " as it is"
	}
	return "image " + j.worker.ImageDigest + " from " + plugin
}

func planManifest(j *job) string { return names(seals(j.worker, nil, nil)) }

func planPromote(j *job) string { return "workers/instances/" + string(j.worker.Serial) + "/" }

func (f *Forge) planCreate(j *job) string {
	made := fmt.Sprintf("a worker of the %s launcher, %s", f.Launcher.Name(), limitWords(f.Spec(j.worker).Limits))
	if j.worker.ImageDigest == "" {
		made += ", none of them enforced" // it is a plain process
	}
	return made
}

func planStart(*job) string { return "a running worker" }

func planHeartbeat(*job) string { return "proof that it lives, with vault_integrity: true" }

func planRecord(j *job) string {
	return "state " + string(j.outcome()) + " and its entry in the record, in one transaction"
}
