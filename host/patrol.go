package host

import (
	"context"
	"time"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// patrolEvery is how often every living worker's folder is checked, asked for or
// not.
const patrolEvery = 30 * time.Second

// patrol checks the living workers, and looks for unknown ones, until ctx ends. When a worker's integrity is
// lost or found again it says so, in the log and in the worker's file.
func (h *Host) patrol(ctx context.Context) error {
	told := map[worker.Serial]string{} // the fault last told of; none is ""
	ticker := time.NewTicker(patrolEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		h.lookForStrays(ctx)
		workers, err := h.registry.Workers(ctx, registry.Filter{})
		if err != nil {
			h.Logger.Warn("workers not checked", "error", err)
			continue
		}
		for _, w := range workers {
			if w.State == worker.StateForging || w.State == worker.StateUpgrading || w.State == worker.StateRetiring || ctx.Err() != nil {
				continue
			}
			fault := h.integrity.fault(ctx, w)
			if fault == told[w.Serial] {
				continue
			}
			told[w.Serial] = fault
			h.Logger.Warn("vault integrity has changed", "worker", w.Name, "serial", w.Serial, "vault_integrity", fault == "", "fault", fault)
			h.mirrors.changed(w.Serial)
		}
	}
}
