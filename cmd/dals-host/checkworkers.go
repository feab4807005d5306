package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// checkWorkers names the workers that are not well. One's trouble is its own: the
// host and the others go on.
func (a *app) checkWorkers(ctx context.Context) finding {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // each one's files are read
	defer cancel()
	var workers []client.Worker
	err := a.with(ctx, func(c *client.Client) (err error) {
		workers, err = c.Workers(ctx, client.WorkerFilter{})
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return ok("not asked: no host runs")
	}
	if err != nil {
		return fail(firstOf(hintOf(err), "dals-host serve"), "%v", err)
	}
	var ill []string
	for _, w := range workers {
		if fault := illness(w); fault != "" {
			ill = append(ill, w.WorkerName+": "+fault)
		}
	}
	switch {
	case len(ill) == 0:
		return ok("%s", count(len(workers), "worker"))
	case len(ill) > maxNamedIll:
		return warn("dals-host workers", "%d of %s are not well: %s; and %d more", len(ill), count(len(workers), "worker"), strings.Join(ill[:maxNamedIll], "; "), len(ill)-maxNamedIll)
	}
	return warn("dals-host worker NAME, dals-host verify NAME", "%d of %s not well: %s", len(ill), count(len(workers), "worker"), strings.Join(ill, "; "))
}

// maxNamedIll is how many workers doctor names.
const maxNamedIll = 10

// illness is what is wrong with a worker, or "".
func illness(w client.Worker) string {
	switch worker.State(w.State) {
	case worker.StateFailed, worker.StateRestarting:
		return reasoned(w.State, w.StateReason)
	case worker.StateLive:
		if !w.VaultIntegrity {
			return reasoned("vault_integrity=false", w.VaultFault)
		}
	}
	return ""
}
