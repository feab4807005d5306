package host

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// mirrorAfter is how long after its worker has changed a mirror is written. What
// changes meanwhile is written with it.
const mirrorAfter = 500 * time.Millisecond

// mirrors are the workers whose worker_<serial>.json is out of date.
type mirrors struct {
	mu   sync.Mutex
	due  map[worker.Serial]bool
	wake chan struct{} // holds one word while due is not empty
}

func newMirrors() *mirrors {
	return &mirrors{due: map[worker.Serial]bool{}, wake: make(chan struct{}, 1)}
}

// changed says that a worker's mirror is out of date.
func (m *mirrors) changed(serial worker.Serial) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.due[serial] = true
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take empties the list.
func (m *mirrors) take() map[worker.Serial]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	due := m.due
	m.due = map[worker.Serial]bool{}
	return due
}

// keep has each list written until ctx ends, and then the last one.
func (m *mirrors) keep(ctx context.Context, write func(context.Context, worker.Serial)) error {
	for ctx.Err() == nil {
		select {
		case <-m.wake:
			select {
			case <-time.After(mirrorAfter):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		for serial := range m.take() {
			write(context.WithoutCancel(ctx), serial)
		}
	}
	return nil
}

func (h *Host) keepMirrors(ctx context.Context) error { return h.mirrors.keep(ctx, h.mirror) }

// mirror writes worker_<serial>.json, for people and scripts; the registry is
// the truth, so a mirror that cannot be written is only a warning.
func (h *Host) mirror(ctx context.Context, serial worker.Serial) {
	w, err := h.registry.Worker(ctx, serial)
	if w.State == worker.StateRetired {
		h.integrity.forget(serial)
		h.doors.Forget(serial)
		h.ingress.Forget(serial)
	}
	if err == nil {
		var text []byte
		text, err = json.MarshalIndent(client.WorkerFromProto(control.WorkerProto(h.view(ctx, w))), "", "  ")
		err = errors.Join(err, h.stage.WriteMirror(serial, append(text, '\n')))
	}
	if err != nil {
		h.Logger.Warn("worker file not written", "serial", serial, "error", err)
	}
}

// lastMoment is longer than a host takes to write a mirror that is due.
const lastMoment = time.Minute

// mirrorLastRetired has the mirrors written again of the workers that were
// retired in the last moment of the host before, which may not have come to it.
// Those that are not retired are all looked at anyway.
func (h *Host) mirrorLastRetired(ctx context.Context) {
	err := h.eachLastEntry(ctx, func(e record.Entry) {
		if e.Kind == record.Retire {
			h.mirrors.changed(e.Worker.Serial)
		}
	})
	if err != nil {
		h.Logger.Warn("workers' files not compared with the last entries", "error", err)
	}
}

// eachLastEntry reads the entries of the moment before the newest.
func (h *Host) eachLastEntry(ctx context.Context, read func(record.Entry)) error {
	size, err := h.registry.Size(ctx)
	if err != nil || size == 0 {
		return err
	}
	var end time.Time
	for group, err := range h.registry.Groups(ctx, size-1) {
		if err != nil {
			return err
		}
		end = group.At
	}
	for group, err := range h.registry.GroupsSince(ctx, end.Add(-lastMoment)) {
		if err != nil {
			return err
		}
		for _, line := range group.Entries {
			e, err := record.Decode(line)
			if err != nil {
				return err
			}
			read(e)
		}
	}
	return nil
}
