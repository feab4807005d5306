package host

import (
	"context"
	"time"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/forge"
	"github.com/dals-host/dals-host/host/worker"
)

func (b backend) Stop(ctx context.Context, ref string, grace time.Duration) (worker.Worker, error) {
	w, err := findWorker(ctx, b.registry, ref)
	if err != nil {
		return w, err
	}
	return b.forge.Stop(ctx, w.Serial, grace)
}

func (b backend) Start(ctx context.Context, ref string, timeout time.Duration) (control.WorkerView, error) {
	w, err := findWorker(ctx, b.registry, ref)
	if err != nil {
		return control.WorkerView{}, err
	}
	if w, err = b.forge.Start(ctx, w.Serial, timeout); err != nil {
		return control.WorkerView{}, err
	}
	return b.view(ctx, w), nil
}

func (b backend) Restart(ctx context.Context, ref string, grace, timeout time.Duration) (control.WorkerView, error) {
	w, err := findWorker(ctx, b.registry, ref)
	if err != nil {
		return control.WorkerView{}, err
	}
	if w, err = b.forge.Restart(ctx, w.Serial, grace, timeout); err != nil {
		return control.WorkerView{}, err
	}
	return b.view(ctx, w), nil
}

func (b backend) Upgrade(ctx context.Context, r control.UpgradeRequest) (control.Upgraded, error) {
	w, err := findWorker(ctx, b.registry, r.Ref)
	if err != nil {
		return control.Upgraded{}, err
	}
	w, from, err := b.forge.Upgrade(ctx, w.Serial, forge.UpgradeRequest{
		Version: r.Version, Config: r.Config, Mounts: r.Mounts, Grace: r.Grace, Timeout: r.Timeout,
	})
	b.integrity.forget(w.Serial) // what was found was found of the old folder, or of none
	if err != nil {
		return control.Upgraded{}, err
	}
	return control.Upgraded{Worker: b.view(ctx, w), FromVersion: from}, nil
}
