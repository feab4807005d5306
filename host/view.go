package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/manifest"
)

func (b backend) Workers(ctx context.Context, f control.WorkerFilter) ([]control.WorkerView, error) {
	workers, err := b.registry.Workers(ctx, registry.Filter{Type: f.Type, State: f.State, IncludeRetired: f.Retired})
	if err != nil {
		return nil, err
	}
	views := make([]control.WorkerView, len(workers))
	for i, w := range workers {
		views[i] = b.view(ctx, w)
	}
	return views, nil
}

func (b backend) Worker(ctx context.Context, ref string) (control.WorkerDetail, error) {
	w, err := findWorker(ctx, b.registry, ref)
	if err != nil {
		return control.WorkerDetail{}, err
	}
	d := control.WorkerDetail{WorkerView: b.fullView(ctx, w), Metrics: b.metrics(w.Serial), Traffic: control.Traffic(b.doors.Traffic(w.Serial))}
	if descriptor, err := b.plugins.Descriptor(w.PluginDigest); err == nil {
		d.Tasks = descriptor.GetTasks() // else the plugin is forgotten, with its last worker
	}
	// What is missing or cannot be read of them shows in the vault's integrity.
	root, err := b.stage.OpenRoot(w.Serial)
	if err != nil {
		return d, nil //nolint:nilerr // see above
	}
	defer root.Close()
	d.Identity, _ = root.ReadFile(identity.File)
	d.Manifest, _ = root.ReadFile(manifest.File)
	return d, nil
}

func (b backend) Log(ctx context.Context, ref string) (control.Log, error) {
	w, err := findWorker(ctx, b.registry, ref)
	if err != nil {
		return nil, err
	}
	if w.State == worker.StateRetired {
		return nil, worker.Hint(fmt.Errorf("log of worker %s: it went when the worker was retired: %w", w.Name, worker.ErrNotFound),
			"what happened to it is in the record: dals-host events --worker "+w.Name)
	}
	log, err := b.logs.Open(w.Serial)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, worker.Hint(fmt.Errorf("log of worker %s: it has none: %w", w.Name, worker.ErrNotFound),
			"a log begins when its worker is started; see its state and why: dals-host worker "+w.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("open log of worker %s: %w", w.Name, err)
	}
	return log, nil
}

// view adds to a worker what the host sees of its health. Its vault is whole
// only if the host's own check and the worker's report hold.
func (h *Host) view(ctx context.Context, w worker.Worker) control.WorkerView {
	v := control.WorkerView{Worker: w, HeartbeatInterval: heartbeatInterval}
	if w.State == worker.StateRetired || w.State == worker.StateForging {
		return v
	}
	v.Allowed = h.spec(w).Limits
	if w.State == worker.StateUpgrading {
		return v // its folder is being replaced
	}
	// Read when it is asked for: nothing is fresher, and nobody pays who does not ask.
	v.Usage, _ = h.launcher.Usage(ctx, w.Serial) // none is what does not run, or is not counted
	health := h.broker.Health(w.Serial)
	v.LastHeartbeat, v.MissedHeartbeats = health.Last, health.Missed
	v.PortFault = h.ports.fault(w.Serial)
	v.VaultFault = h.integrity.fault(ctx, w)
	switch {
	case v.VaultFault != "":
	case health.VaultFault != "":
		v.VaultFault = "the worker reports: " + health.VaultFault
	case w.State == worker.StateStopped || w.State == worker.StateFailed:
		// Nothing is wrong, but the worker is not there to say so too.
	case !health.VaultIntegrity:
		v.VaultFault = "the worker has not reported yet"
	default:
		v.VaultIntegrity = true
	}
	return v
}

// fullView is view with what the worker's type asks for beyond its grants.
func (h *Host) fullView(ctx context.Context, w worker.Worker) control.WorkerView {
	v := h.view(ctx, w)
	if d, err := h.plugins.Descriptor(w.PluginDigest); err == nil {
		v.NotGranted = capability.NotGranted(d.GetCapabilities(), w.Grants)
	}
	return v
}

func (h *Host) metrics(serial worker.Serial) control.Metrics {
	health := h.broker.Health(serial)
	return control.Metrics{
		StartedAt: health.StartedAt, InFlight: health.InFlight, Done: health.Done, Failed: health.Failed, RSSBytes: health.RSSBytes,
	}
}
