package host

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"iter"
	"runtime"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/broker"
	"github.com/dals-host/dals-host/host/catalog"
	"github.com/dals-host/dals-host/host/door"
	"github.com/dals-host/dals-host/host/forge"
	"github.com/dals-host/dals-host/host/gate"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Each part declares what it needs of its neighbours. The types below are where
// one part's words become another's; they decide nothing.

// source gives the record the registry's entries.
type source struct{ *registry.Registry }

func (s source) Groups(ctx context.Context, from uint64) iter.Seq2[record.Group, error] {
	return func(yield func(record.Group, error) bool) {
		for g, err := range s.Registry.Groups(ctx, from) {
			if !yield(record.Group(g), err) {
				return
			}
		}
	}
}

// recorder appends entries that stand for themselves.
type recorder struct{ *registry.Registry }

func (r recorder) Record(ctx context.Context, e record.Entry) error {
	_, err := indexer(r).Record(ctx, e)
	return err
}

// indexer tells the index of what it has appended.
type indexer struct{ *registry.Registry }

func (i indexer) Record(ctx context.Context, e record.Entry) (index uint64, err error) {
	line, err := e.Encode()
	if err != nil {
		return 0, err
	}
	err = i.Update(ctx, func(tx *registry.Tx) (err error) {
		index, err = tx.Append(line)
		return err
	})
	return index, err
}

// sessions are the ways between the host and its workers: the broker's, which
// the host opens, and the doors, which are the workers' own.
type sessions struct {
	*broker.Broker
	doors  *door.Doors
	logger hclog.Logger
}

func (h *Host) sessions() sessions { return sessions{h.broker, h.doors, h.Logger.Named("door")} }

// Attach opens both. A worker whose door does not open is no worse off than one
// whose connections are refused: it runs.
func (s sessions) Attach(w worker.Worker, dir string) {
	if err := s.doors.Open(w, dir); err != nil {
		s.logger.Error("a worker cannot use what it was granted", "worker", w.Name, "serial", w.Serial, "error", err)
	}
	s.Broker.Attach(w, dir)
}

// Detach closes both.
func (s sessions) Detach(ctx context.Context, serial worker.Serial) {
	if err := s.doors.Shut(serial); err != nil {
		s.logger.Warn("door of a worker not closed cleanly", "serial", serial, "error", err)
	}
	s.Broker.Detach(ctx, serial)
}

func (h *Host) note(ctx context.Context, e record.Entry) error {
	return recorder{h.registry}.Record(ctx, e)
}

// past reads entries back for the gate.
type past struct{ *registry.Registry }

func (p past) EntriesSince(ctx context.Context, since time.Time, visit func(record.Entry) error) error {
	for g, err := range p.GroupsSince(ctx, since) {
		if err != nil {
			return err
		}
		for _, line := range g.Entries {
			e, err := record.Decode(line)
			if err != nil {
				return err
			}
			if err := visit(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// directory tells the gate who is who.
type directory struct{ *registry.Registry }

func (d directory) Client(ctx context.Context, id string) (name string, public ed25519.PublicKey, revoked bool, err error) {
	c, err := d.Registry.Client(ctx, id)
	return c.Name, c.PublicKey, !c.RevokedAt.IsZero(), err
}

// kinds tells the gate what tasks take.
type kinds struct{ *plugins }

func (k kinds) InputSchema(_ context.Context, pluginDigest, kind string) ([]byte, error) {
	d, err := k.Descriptor(pluginDigest)
	if err != nil {
		return nil, err
	}
	for _, t := range d.GetTasks() {
		if t.GetKind() == kind {
			return t.GetInputSchema(), nil
		}
	}
	return nil, fmt.Errorf("task %s: %w", kind, worker.ErrNotFound)
}

// types tells the forge what can be made.
type types struct{ catalog *catalog.Catalog }

func (t types) Lookup(_ context.Context, name, version string) (forge.Type, error) {
	e, err := t.catalog.Lookup(name, version)
	if err != nil {
		return forge.Type{}, err
	}
	return forge.Type{Descriptor: e.Descriptor, Image: launch.Image{
		Digest: e.Digest, Path: e.Path, Type: e.Type, Version: e.Version,
	}}, nil
}

// gateway puts the gate before the broker.
type gateway struct{ *gate.Gate }

func (g gateway) Admit(ctx context.Context, peer string, env *workerv1.Envelope) (broker.Admitted, error) {
	a, err := g.Gate.Admit(ctx, peer, env)
	if err != nil {
		return broker.Admitted{}, err
	}
	return broker.Admitted{Envelope: a.Envelope, Header: a.Header, Worker: a.Worker}, nil
}

func (g gateway) AdmitCall(ctx context.Context, peer string, caller worker.Worker, env *workerv1.Envelope) (broker.Admitted, error) {
	a, err := g.Gate.AdmitCall(ctx, peer, caller, env)
	if err != nil {
		return broker.Admitted{}, err
	}
	return broker.Admitted{Envelope: a.Envelope, Header: a.Header, Worker: a.Worker}, nil
}

func (g gateway) AdmitIngress(ctx context.Context, peer string, key ed25519.PublicKey, grant string, env *workerv1.Envelope) (broker.Admitted, error) {
	a, err := g.Gate.AdmitIngress(ctx, peer, key, grant, env)
	if err != nil {
		return broker.Admitted{}, err
	}
	return broker.Admitted{Envelope: a.Envelope, Header: a.Header, Worker: a.Worker}, nil
}

func (g gateway) Refused(ctx context.Context, peer string, a broker.Admitted, err error) error {
	return g.Gate.Refused(ctx, peer, &gate.Admission{Envelope: a.Envelope, Header: a.Header, Worker: a.Worker}, err)
}

// spec says how to run a worker, from its row and its type's descriptor.
func (h *Host) spec(w worker.Worker) launch.Spec {
	s := launch.Spec{
		Serial: w.Serial, Dir: h.stage.Dir(w.Serial), UID: w.UID,
		Image: launch.Image{Digest: w.PluginDigest, Path: h.paths.binary(w.PluginDigest), Type: w.Type, Version: w.TypeVersion},
		Etc:   forge.HasEgress(w),
	}
	s.Mounts, _ = launch.Mounts(w.Grants) // they were checked
	// A descriptor that cannot be read leaves the launcher's default limits.
	if d, err := h.plugins.Descriptor(w.PluginDigest); err == nil {
		s.Limits = limitsFor(d.GetResources())
	}
	s.Limits = launch.LimitsOf(w.Limits.Or(s.Limits))
	return s
}

// What a worker gets at most, whatever its type asks for: a stranger's plugin
// must not be able to ask for the machine. Who forges it may ask for more.
const (
	maxMemoryBytes = 1 << 30
	maxPIDs        = 1024
)

func limitsFor(asked *workerv1.Resources) worker.Limits {
	return worker.Limits{
		MemoryBytes: min(asked.GetMemoryBytes(), maxMemoryBytes),
		CPUMillis:   min(asked.GetCpuMillis(), int64(runtime.NumCPU())*1000),
		PIDs:        min(asked.GetPids(), maxPIDs),
	}
}
