package host

import (
	"bytes"
	"context"
	"time"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/record"
)

// eventWords are what the record's kinds are called where people look at them.
// What is not here is no event.
var eventWords = map[record.Kind]string{
	record.Forge: "forged", record.Void: "forge_failed", record.Retire: "retired", record.Upgrade: "upgraded",
	record.WorkerLost: "lost", record.WorkerRestarted: "restarted", record.WorkerFailed: "failed",
	record.WorkerStopped: "stopped", record.WorkerStarted: "started",
}

// Events tells what happened to workers from the record: it outlives the host.
func (b backend) Events(ctx context.Context, ref string, since time.Time, from uint64, visit func(control.Event) error) (uint64, error) {
	if ref != "" {
		if _, err := findWorker(ctx, b.registry, ref); err != nil {
			return from, err
		}
	}
	groups := b.registry.Groups(ctx, from)
	if from == 0 && !since.IsZero() {
		groups = b.registry.GroupsSince(ctx, since)
	}
	next := from
	for g, err := range groups {
		if err != nil {
			return next, err
		}
		for i, line := range g.Entries {
			index := g.First + uint64(i)
			if index < next || !bytes.Contains(line, []byte(`"worker":{`)) {
				continue // most entries: not worth decoding
			}
			e, err := record.Decode(line)
			if err != nil {
				return next, err
			}
			if !tells(e, ref, since) {
				continue
			}
			if err := visit(eventOf(e, index)); err != nil {
				return next, err
			}
		}
		next = g.First + uint64(len(g.Entries))
	}
	return next, nil
}

// tells says whether an entry is an event of that worker, and not an earlier one.
func tells(e record.Entry, ref string, since time.Time) bool {
	return e.Worker != nil && eventWords[e.Kind] != "" && !e.At.Before(since) &&
		(ref == "" || ref == e.Worker.Name || ref == string(e.Worker.Serial))
}

func eventOf(e record.Entry, index uint64) control.Event {
	return control.Event{
		At: e.At, Event: eventWords[e.Kind], Name: e.Worker.Name, Serial: e.Worker.Serial, Reason: e.Reason, Index: index,
	}
}
