package forge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

// UpgradeRequest asks for another version, or configuration, of a worker.
type UpgradeRequest struct {
	Version string        // empty for the type's default version
	Config  []byte        // a JSON object, or empty to keep the worker's own
	Mounts  []string      // SOURCE:PLACE[:ro], each in place of what the worker has there
	Grace   time.Duration // for the old version to end; zero means DefaultGrace
	Timeout time.Duration // for the new one to become healthy; zero means DefaultTimeout
}

// Upgrade moves a worker to another version of its type, and says which it was.
// Serial, numbers, keys, state and log stay. It is a list of steps with undos, as
// Forge is: a version that does not become healthy goes, and the old one comes
// back. A worker that was stopped is run to see that it is healthy, and stopped
// again. Where version and configuration are the worker's own nothing is done.
func (f *Forge) Upgrade(ctx context.Context, serial worker.Serial, r UpgradeRequest) (w worker.Worker, from string, err error) {
	if err := errors.Join(CheckWait("grace", r.Grace), CheckWait("timeout", r.Timeout)); err != nil {
		return worker.Worker{}, "", err
	}
	was, done, err := f.hold(ctx, serial)
	if err != nil {
		return was, "", err
	}
	defer done()
	j, err := f.upgradeJob(ctx, was, r)
	if err != nil || j == nil {
		return was, was.TypeVersion, err
	}
	defer j.release()
	if err := f.expectNoAside(ctx, was); err != nil {
		return was, "", worker.Hint(fmt.Errorf("settle an earlier upgrade: %w", err), "run dals-host restart "+was.Name+", then try again")
	}
	within, cancel := context.WithTimeout(ctx, j.grace+stopLimit+readyLimit+j.within)
	defer cancel()
	if err := f.run(within, j, f.upgradeSteps()); err != nil {
		err = worker.Hint(err, hintOr(err, "read its log: dals-host logs "+was.Name))
		if j.opened {
			err = errors.Join(err, f.comeBack(ctx, was, j.why))
		}
		return was, "", err
	}
	if err := f.Stage.DropAside(serial); err != nil {
		f.Logger.Warn("old folder of an upgraded worker not removed; trying again later", "worker", was.Name, "serial", serial, "error", err)
	}
	if j.worker.State == worker.StateLive {
		f.Keeper.Keep(j.worker)
	}
	f.Changed(serial)
	return j.worker, was.TypeVersion, nil
}

// grantsFor are what a worker has under a version of its type: those of its grants
// that the version asks for, and the folders that are given with it. By itself a
// version never gets more than the worker had.
func (f *Forge) grantsFor(t Type, grants, mounts []string) ([]string, error) {
	given, err := f.grantMounts(mounts)
	if err == nil {
		err = checkGrants(t, given)
	}
	if err != nil {
		return nil, err
	}
	still := slices.DeleteFunc(slices.Clone(grants), func(g string) bool {
		return !capability.Asks(t.Descriptor.GetCapabilities(), g) || isReplaced(g, given)
	})
	if still, err = capability.Normal(append(still, given...)); err != nil {
		return nil, fmt.Errorf("grant: %w: %w", err, worker.ErrInvalid)
	}
	return still, f.checkMounts(still) // before the old version is ended
}

// isReplaced says whether a folder is given where a grant has one.
func isReplaced(grant string, given []string) bool {
	had, err := capability.Parse(grant)
	return err == nil && slices.ContainsFunc(given, func(g string) bool { return capability.Asks([]string{had.Asked().String()}, g) })
}

// readyLimit bounds how long the files and the container of a new version may
// take to be made.
const readyLimit = time.Minute

// upgradeJob checks the request against the type and says what the worker would
// become; nil if that is what it is. The caller releases the job.
func (f *Forge) upgradeJob(ctx context.Context, was worker.Worker, r UpgradeRequest) (j *job, err error) {
	if r.Version == was.TypeVersion && len(r.Config) == 0 && len(r.Mounts) == 0 {
		return nil, nil // also when that version's file is gone
	}
	typ, release, err := f.lookup(ctx, was.Type, r.Version)
	if err != nil {
		return nil, err
	}
	defer func() {
		if j == nil {
			release()
		}
	}()
	given, hint := r.Config, ""
	if len(given) == 0 {
		given, hint = was.Config, "its own config is kept unless another is given: use --config or --set"
	}
	config, err := configFor(typ, given)
	if err != nil {
		if hint != "" {
			err = worker.Hint(err, hint)
		}
		return nil, err
	}
	w := was
	w.TypeVersion, w.PluginDigest, w.Config = typ.Descriptor.GetVersion(), typ.Image.Digest, config
	if w.Grants, err = f.grantsFor(typ, was.Grants, r.Mounts); err != nil {
		return nil, err
	}
	if w.TypeVersion == was.TypeVersion && w.PluginDigest == was.PluginDigest && bytes.Equal(config, was.Config) && slices.Equal(w.Grants, was.Grants) {
		return nil, nil
	}
	w.State, w.StateReason = worker.StateLive, ""
	if was.State == worker.StateStopped {
		w.State = worker.StateStopped
	}
	return &job{what: "upgrade", release: release, request: Request{Name: was.Name}, worker: w, typ: typ, was: was, grace: graceOr(r.Grace), within: Request{Timeout: r.Timeout}.timeout()}, nil
}

// upgradeSteps is the upgrade. The new folder is ready before the old version
// ends; from "journal" to "record" the row is in state upgrading and still says
// what the worker was.
func (f *Forge) upgradeSteps() []step {
	return []step{
		{name: "open stage", do: f.openNext, undo: f.dropStage},
		{name: "inject", do: f.carryOver},
		{name: "prepare image", do: f.prepareImage},
		{name: "write manifest", do: f.writeManifest},
		{name: "journal", do: f.openUpgrade, undo: f.closeUpgrade},
		{name: "end old version", do: f.endOld},
		{name: "set folder aside", do: f.setAside, undo: f.putBack},
		{name: "promote stage", do: f.promoteOnDisk},
		{name: "take over state", do: f.takeOver},
		{name: "replace container", do: f.replace, undo: f.remove},
		{name: "start", do: f.start, undo: f.stop},
		{name: "await heartbeat", do: f.awaitInTime, undo: f.detach},
		{name: "stop again", do: f.stopAgain},
		{name: "record", do: f.recordUpgrade},
	}
}

// before is what a worker was when its upgrade began: an undo makes it that
// again. It is written with the state upgrading, and goes with it.
type before struct {
	State  worker.State `json:"state"`
	Reason string       `json:"reason"`
}

func beforeKey(serial worker.Serial) string { return "before_upgrade/" + string(serial) }

// openUpgrade opens the journal: from here on the worker is upgrading, until
// recordUpgrade or closeUpgrade.
func (f *Forge) openUpgrade(ctx context.Context, j *job) error {
	defer f.Changed(j.was.Serial)
	// Not the caller's context: whether the row was written must be known.
	j.opened = true
	return f.Registry.Update(context.WithoutCancel(ctx), func(tx *registry.Tx) error {
		w, err := tx.Worker(j.was.Serial) // its Keeper may have changed its state just now
		if err != nil {
			return err
		}
		text, err := json.Marshal(before{w.State, w.StateReason})
		if err != nil {
			return err
		}
		if err := tx.SetMeta(beforeKey(w.Serial), string(text)); err != nil {
			return err
		}
		return tx.SetState(w.Serial, worker.StateUpgrading, "from "+w.TypeVersion+" to "+j.worker.TypeVersion)
	})
}

// closeUpgrade makes the worker what it was. One that is to run is restarting:
// whoever undoes brings it back.
func (f *Forge) closeUpgrade(ctx context.Context, j *job) error {
	text, err := f.Registry.Meta(ctx, beforeKey(j.worker.Serial))
	if errors.Is(err, worker.ErrNotFound) {
		return nil // it was never begun
	}
	var was before
	if err == nil {
		err = json.Unmarshal([]byte(text), &was)
	}
	if err != nil {
		return err
	}
	if was.State != worker.StateStopped && was.State != worker.StateFailed {
		was = before{worker.StateRestarting, record.Text("its upgrade was undone: " + j.why.Error())}
	}
	defer f.Changed(j.worker.Serial)
	return f.Registry.Update(ctx, func(tx *registry.Tx) error {
		w, err := tx.Worker(j.worker.Serial)
		if err != nil || w.State != worker.StateUpgrading {
			return err
		}
		if err := tx.DeleteMeta(beforeKey(w.Serial)); err != nil {
			return err
		}
		return tx.SetState(w.Serial, was.State, was.Reason)
	})
}

// recordUpgrade is the commit point: the row says what the worker has become, and
// the record with it, in one transaction. What an upgrade does not change stays as
// the row has it.
func (f *Forge) recordUpgrade(ctx context.Context, j *job) error {
	return f.Registry.Update(context.WithoutCancel(ctx), func(tx *registry.Tx) error {
		w, err := tx.Worker(j.worker.Serial)
		if err != nil {
			return err
		}
		from, next := w.TypeVersion, j.worker
		w.TypeVersion, w.PluginDigest, w.Config, w.Grants = next.TypeVersion, next.PluginDigest, next.Config, next.Grants
		w.ImageDigest, w.ManifestSHA256 = next.ImageDigest, next.ManifestSHA256
		w.State, w.StateReason, w.RestartTries = next.State, next.StateReason, 0
		j.worker = w
		if err := tx.DeleteMeta(beforeKey(w.Serial)); err != nil {
			return err
		}
		return commit(tx, w, record.Entry{Kind: record.Upgrade, Worker: record.FieldsOf(w), Reason: "from " + from})
	})
}

// comeBack runs the version that an undone upgrade has put back, if it ran
// before. Where that does not work at once the Keeper goes on trying.
func (f *Forge) comeBack(ctx context.Context, was worker.Worker, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DefaultTimeout)
	defer cancel()
	w, err := f.Registry.Worker(ctx, was.Serial)
	if err != nil || w.State != worker.StateRestarting {
		return err // it did not run, or it stays in the journal
	}
	f.Keeper.Release(w.Serial)
	if err = f.bringUp(ctx, w); err == nil {
		_, err = f.goLive(ctx, w, record.WorkerRestarted, w.StateReason)
	}
	if err != nil {
		f.keepRestarting(w)
		return fmt.Errorf("bring %s back: %w; the host goes on trying", was.TypeVersion, err)
	}
	f.Logger.Warn("upgrade undone", "worker", w.Name, "serial", w.Serial, "version", w.TypeVersion, "error", why)
	return nil
}

func (f *Forge) keepRestarting(w worker.Worker) {
	f.Sessions.Attach(w, f.Stage.Dir(w.Serial))
	f.Keeper.Keep(w)
}

// rollBack undoes an upgrade that was left open. The worker's turn is held.
func (f *Forge) rollBack(ctx context.Context, w worker.Worker) (worker.Worker, error) {
	f.Logger.Info("rolling back an upgrade that was left open", "worker", w.Name, "serial", w.Serial)
	f.Keeper.Release(w.Serial)
	j := &job{worker: w, was: w, why: errors.New("it was left open, by a host that ended or an undo that failed")}
	if err := f.undo(ctx, j, f.upgradeSteps()); err != nil {
		return w, worker.Hint(fmt.Errorf("roll back the upgrade of %s that was left open: %w", w.Name, err),
			hintOr(err, "see with dals-host doctor what is wrong; or give the worker up: dals-host retire "+w.Name))
	}
	w, err := f.Registry.Worker(ctx, w.Serial)
	if err == nil && w.State == worker.StateRestarting {
		f.keepRestarting(w)
	}
	return w, err
}
