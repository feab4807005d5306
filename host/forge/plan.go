package forge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// Plan is what a forge would do.
type Plan struct {
	Worker worker.Worker
	Steps  []PlanStep
	Hash   string // of all that decides what would be made
}

// PlanStep is one step and what it would make.
type PlanStep struct{ Step, Makes string }

// errPlanned takes back the allocation that a plan only looks at.
var errPlanned = errors.New("planned only")

// Plan says what Forge would make, from the same list of steps, and makes
// nothing. The numbers are those that a forge would get at this moment.
func (f *Forge) Plan(ctx context.Context, r Request) (Plan, error) {
	if err := r.check(); err != nil {
		return Plan{}, err
	}
	existing, found, err := f.existing(ctx, r)
	if err != nil {
		return Plan{}, err
	}
	j, err := f.newJob(ctx, r)
	if err != nil {
		return Plan{}, err
	}
	if found {
		return Plan{Worker: existing, Hash: f.planHash(j), Steps: []PlanStep{{"find existing", "nothing: this request has made " + string(existing.Serial)}}}, nil
	}
	listener, err := f.Ports.Bind(ctx)
	if err != nil {
		return Plan{}, err
	}
	defer listener.Close()
	j.worker.Port = listener.Port()
	err = f.Registry.Update(ctx, func(tx *registry.Tx) error {
		if err := f.allocateIn(tx, &j.worker); err != nil {
			return err
		}
		return errPlanned
	})
	if !errors.Is(err, errPlanned) {
		return Plan{}, fmt.Errorf("plan numbers: %w", err)
	}
	p := Plan{Worker: j.worker, Hash: f.planHash(j)}
	for _, s := range f.steps() {
		p.Steps = append(p.Steps, PlanStep{s.name, s.makes(j)})
	}
	return p, nil
}

// planHash covers what decides what a forge makes, and not the numbers, which
// depend on who forges first.
func (f *Forge) planHash(j *job) string {
	text, _ := json.Marshal([]string{ // strings always marshal
		worker.ForgeVersion, f.Keys.HostID(), hex.EncodeToString(f.Authority.CertPEM()), j.worker.Name, j.worker.Type, j.worker.TypeVersion,
		j.worker.PluginDigest, string(j.worker.ClassCode), string(j.worker.Config), f.Launcher.Name(),
	})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func planAllocate(j *job) string {
	w := j.worker
	return fmt.Sprintf("serial %s, model %s, ledger code %s, port %d, uid %d", w.Serial, w.Model, w.LedgerCode, w.Port, w.UID)
}

func planStage(j *job) string { return "workers/.stage/" + string(j.worker.Serial) + "/" }

func planKeys(*job) string {
	return "an Ed25519 key of the worker's own (certs/worker.key, 0600) and its certificate"
}

func planInject(*job) string {
	return "identity.json, config.json, vault/accountability.json, vault/reflection.json"
}

func (f *Forge) planImage(j *job) string {
	return fmt.Sprintf("what %s runs from plugin sha256:%s", f.Launcher.Name(), j.worker.PluginDigest)
}

func planManifest(*job) string { return "worker_manifest.json and worker_manifest.sig" }

func planPromote(j *job) string { return "workers/instances/" + string(j.worker.Serial) + "/" }

func (f *Forge) planCreate(*job) string {
	return fmt.Sprintf("a worker of the %s launcher", f.Launcher.Name())
}

func planStart(*job) string { return "a running worker" }

func planHeartbeat(*job) string { return "proof that it lives, with vault_integrity: true" }

func planRecord(*job) string { return "state live and its entry in the record, in one transaction" }
