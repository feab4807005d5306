package care

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
)

// replay makes a registry's rows from the entries that told of them. An entry
// that does not fit what came before it is noted, not followed: one odd entry
// must not keep all the rest away.
type replay struct {
	hostID   string
	uids     UIDs
	now      time.Time
	parts    map[string][]byte // of descriptors, by digest
	operator string            // the first client
	notes    []string
	lost     []span // what earlier recoveries gave up
}

// span are sizes of a record, above from and up to to.
type span struct{ from, to uint64 }

const (
	// oldDeadline is what a task had whose entry does not tell its deadline.
	oldDeadline = 30 * time.Second
	// portRest is how long the port of a retired worker is given to nobody.
	portRest = 10 * time.Minute
)

// run replays all sound entries of p into r, which is new.
func (y *replay) run(ctx context.Context, p *record.Published, r *registry.Registry) error {
	y.parts = map[string][]byte{}
	for g, err := range p.Entries(ctx) {
		if err != nil {
			return err
		}
		err = r.Update(ctx, func(tx *registry.Tx) error {
			for i, line := range g.Entries {
				if err := y.entry(tx, g.First+uint64(i), line); err != nil {
					return fmt.Errorf("replay entry %d: %w", g.First+uint64(i), err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (y *replay) entry(tx *registry.Tx, index uint64, line []byte) error {
	e, err := record.Decode(line)
	if err != nil {
		return worker.Hint(err, "an entry of a newer dals-host: use that to recover")
	}
	if _, err := tx.AppendPast(line, e.At); err != nil {
		return err
	}
	switch err := y.follow(tx, index, e); {
	case errors.Is(err, worker.ErrNotFound), errors.Is(err, worker.ErrConflict), errors.Is(err, worker.ErrInvalid):
		y.notes = append(y.notes, fmt.Sprintf("entry %d (%s) does not fit those before it: %v", index, e.Kind, err))
	case err != nil:
		return err
	}
	return nil
}

// follow does to the rows what the entry tells.
func (y *replay) follow(tx *registry.Tx, index uint64, e record.Entry) error {
	switch e.Kind {
	case record.Forge, record.Upgrade:
		return y.made(tx, e)
	case record.Void:
		return tx.SeenNumbers(e.Worker.Serial, e.Worker.Ledger)
	case record.Retire, record.WorkerLost, record.WorkerRestarted, record.WorkerFailed, record.WorkerStopped, record.WorkerStarted:
		return y.turned(tx, e)
	case record.ClientAdded, record.ClientRevoked:
		return y.client(tx, e)
	case record.Admitted, record.Result:
		return y.envelope(tx, index, e)
	case record.PluginDescribed, record.PluginRegistered, record.PluginQuarantined:
		return y.plugin(tx, e)
	case record.Recovered:
		y.lost = append(y.lost, span{index, index + e.Recovery.Lost})
		return y.recovered(tx, e.Recovery)
	case record.HostStarted, record.Refused, record.RefusedSummary, record.EgressOpened, record.EgressClosed, record.EgressRefused:
		return nil // they change nothing
	}
	return fmt.Errorf("kind %s is not known to recover: %w", e.Kind, worker.ErrInvalid)
}

// made makes a worker's row, or all of it anew after an upgrade.
func (y *replay) made(tx *registry.Tx, e record.Entry) error {
	f := e.Worker
	w := worker.Worker{
		Serial: f.Serial, Name: f.Name, Type: f.Type, TypeVersion: f.Version, PluginDigest: f.PluginDigest,
		ClassCode: f.Class, Model: f.Model, LedgerCode: f.Ledger, Port: f.Port, UID: f.UID, State: worker.StateLive,
		Launcher: f.Launcher, PublicKey: f.PublicKey, Glyph: identity.Glyph(f.PublicKey), ManifestSHA256: f.ManifestSHA256,
		ImageDigest: f.ImageDigest, Config: f.Config, Grants: f.Grants, RequestSHA256: f.RequestSHA256, CreatedAt: f.CreatedAt,
		Limits: f.Limits.Asked(),
	}
	if e.Kind == record.Upgrade {
		was, err := tx.Worker(w.Serial)
		if err != nil {
			return err
		}
		w.Restarts = was.Restarts
		return tx.UpdateWorker(w)
	}
	if err := tx.SeenNumbers(w.Serial, w.LedgerCode); err != nil {
		return err
	}
	if y.uids.own(w.UID) {
		if err := tx.TakeUID(w.UID); err != nil {
			return err
		}
	}
	return tx.InsertWorker(w)
}

// turned turns a worker's state.
func (y *replay) turned(tx *registry.Tx, e record.Entry) error {
	w, err := tx.Worker(e.Worker.Serial)
	if err != nil {
		return err
	}
	w.StateReason = ""
	switch e.Kind {
	case record.Retire:
		w.State, w.RetiredAt = worker.StateRetired, e.At
		if free := e.At.Add(portRest); free.After(y.now) {
			if err := tx.QuarantinePort(w.Port, free); err != nil {
				return err
			}
		}
	case record.WorkerLost:
		w.State, w.StateReason = worker.StateRestarting, e.Reason
	case record.WorkerRestarted:
		w.State = worker.StateLive
		w.Restarts++
	case record.WorkerFailed:
		w.State, w.StateReason = worker.StateFailed, e.Reason
	case record.WorkerStopped:
		w.State, w.StateReason = worker.StateStopped, e.Reason
	case record.WorkerStarted:
		w.State = worker.StateLive
	}
	return tx.UpdateWorker(w)
}

func (y *replay) client(tx *registry.Tx, e record.Entry) error {
	c := e.Client
	if e.Kind == record.ClientRevoked {
		_, err := tx.RevokeClient(c.Name, e.At)
		return err
	}
	if y.operator == "" {
		y.operator = c.ID
	}
	return tx.AddClient(registry.Client{ID: c.ID, Name: c.Name, PublicKey: c.PublicKey, CreatedAt: e.At})
}

// envelope keeps what was admitted and not answered: its worker may still have
// the result.
func (y *replay) envelope(tx *registry.Tx, index uint64, e record.Entry) error {
	env := e.Envelope
	if e.Kind == record.Result {
		_, err := tx.TakeDelivery(env.InReplyTo, worker.Serial(env.WorkerSerial), env.Attempt)
		if errors.Is(err, worker.ErrNotFound) {
			return nil
		}
		return err
	}
	deadline := env.Deadline
	if deadline.IsZero() {
		deadline = e.At.Add(oldDeadline)
	}
	return tx.PutDelivery(registry.Delivery{
		EnvelopeID: env.ID, Sender: env.Sender, Serial: worker.Serial(env.WorkerSerial), Attempt: env.Attempt,
		Header: env.Header, AdmittedAt: e.At, Deadline: deadline, LogIndex: index,
	})
}

func (y *replay) plugin(tx *registry.Tx, e record.Entry) error {
	p := e.Plugin
	switch e.Kind {
	case record.PluginDescribed:
		y.parts[p.Digest] = append(y.parts[p.Digest], p.Descriptor...)
		return nil
	case record.PluginQuarantined:
		return tx.PutQuarantine(registry.Quarantine{Digest: p.Digest, Reason: e.Reason, Fix: p.Fix, At: e.At})
	}
	descriptor := slices.Concat(y.parts[p.Digest], p.Descriptor)
	delete(y.parts, p.Digest)
	if len(descriptor) == 0 {
		y.notes = append(y.notes, fmt.Sprintf("type %s %s: the record does not have its descriptor: its plugin will be asked again", p.Type, p.Version))
		return nil
	}
	if err := tx.RemoveQuarantine(p.Digest); err != nil {
		return err
	}
	if err := tx.PutDescriptor(registry.Descriptor{Digest: p.Digest, Type: p.Type, Version: p.Version, Descriptor: descriptor, ProbedAt: e.At}); err != nil {
		return err
	}
	return tx.PutType(registry.Type{Name: p.Type, Version: p.Version, Digest: p.Digest, OwnerUID: p.OwnerUID, RegisteredAt: e.At})
}

// recovered leaves out again what an earlier recovery left out: numbers of that
// gap may have been given since, in a time that is lost now.
func (y *replay) recovered(tx *registry.Tx, r *record.RecoveryFields) error {
	if err := tx.JumpCounters(r.Jump, y.uids.Low, y.uids.High); err != nil || r.NotBefore.IsZero() {
		return err
	}
	return tx.SetMeta(MetaNotBefore, r.NotBefore.Format(time.RFC3339Nano))
}

// gaveUp says whether a checkpoint of that size can be of what an earlier
// recovery gave up.
func (y *replay) gaveUp(size uint64) bool {
	return slices.ContainsFunc(y.lost, func(s span) bool { return size > s.from && size <= s.to })
}

// end leaves out numbers and writes what a new registry has to know.
func (y *replay) end(tx *registry.Tx, fields record.RecoveryFields, line []byte) error {
	if y.operator != "" {
		if err := tx.SetMeta(MetaOperator, y.operator); err != nil {
			return err
		}
	}
	if _, err := tx.Append(line); err != nil {
		return err
	}
	return errors.Join(tx.SetMeta(MetaRecord, y.hostID), y.recovered(tx, &fields))
}
