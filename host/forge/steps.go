package forge

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

// allocate gives the worker its numbers and writes the row that is the journal
// of this forge. The port is bound first: what the kernel gave us nobody else
// can have.
func (f *Forge) allocate(ctx context.Context, j *job) error {
	listener, err := f.Ports.Bind(ctx)
	if err != nil {
		return err
	}
	j.listener, j.worker.Port = listener, listener.Port()
	j.worker.CreatedAt = time.Now().UTC().Truncate(time.Millisecond)
	j.slot = f.warmth.take(j.fits)
	// Not the caller's context: whether the row was written must be known.
	err = f.Registry.Update(context.WithoutCancel(ctx), func(tx *registry.Tx) error {
		return f.allocateIn(tx, &j.worker, j.slot)
	})
	if j.slot == nil {
		return err
	}
	if err != nil { // no row tells of the slot
		f.warmth.put(j.slot)
		j.slot = nil
		return err
	}
	j.slot.release() // the job has a lease of its own
	f.Logger.Debug("a worker that was kept warm is claimed", "worker", j.worker.Name, "serial", j.worker.Serial)
	return nil
}

// allocateIn is the part of the allocation that the registry decides. Who claims a
// slot gets its numbers.
func (f *Forge) allocateIn(tx *registry.Tx, w *worker.Worker, claimed *slot) (err error) {
	if claimed == nil {
		err = f.allocateSelf(tx, w)
	} else {
		w.Serial, w.UID = claimed.worker.Serial, claimed.worker.UID
		w.PublicKey, w.Glyph = claimed.worker.PublicKey, claimed.worker.Glyph
		err = tx.TakeUID(w.UID)
	}
	if err != nil {
		return err
	}
	if w.LedgerCode, err = tx.AllocateLedgerCode(w.ClassCode); err != nil {
		return fmt.Errorf("allocate ledger code: %w", err)
	}
	return tx.InsertWorker(*w)
}

// allocateSelf gives the worker the numbers that do not depend on what it is for.
func (f *Forge) allocateSelf(tx *registry.Tx, w *worker.Worker) (err error) {
	if w.Serial, err = tx.AllocateSerial(w.Model); err != nil {
		return fmt.Errorf("allocate serial: %w", err)
	}
	w.UID = f.OwnUID
	if f.UIDs.High > 0 {
		if w.UID, err = tx.AllocateUID(f.UIDs.Low, f.UIDs.High); err != nil {
			return fmt.Errorf("allocate uid: %w", err)
		}
	}
	return nil
}

// release gives the numbers back as far as they can be: the row goes, the
// ledger code is recorded as void, counters only go up.
func (f *Forge) release(ctx context.Context, j *job) error {
	if j.worker.Serial == "" {
		return nil
	}
	if j.slot != nil { // the steps that would undo what it has may not have come yet
		if err := f.Launcher.Remove(ctx, j.worker.Serial); err != nil {
			return err
		}
		if err := f.Stage.Drop(j.worker.Serial); err != nil {
			return err
		}
	}
	entry, err := record.Entry{At: time.Now(), Kind: record.Void, Worker: record.NameOf(j.worker), Reason: j.why.Error()}.Encode()
	if err != nil {
		return err
	}
	return f.Registry.Update(ctx, func(tx *registry.Tx) error {
		_, err := tx.Worker(j.worker.Serial)
		if errors.Is(err, worker.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := tx.DeleteWorker(j.worker.Serial); err != nil {
			return err
		}
		_, err = tx.Append(entry)
		return err
	})
}

func (f *Forge) openStage(_ context.Context, j *job) error {
	if j.slot != nil {
		j.folder = j.slot.folder
		return j.folder.Join()
	}
	folder, err := f.Stage.New(j.worker.Serial)
	if err != nil {
		return err
	}
	j.folder = folder
	return j.lay(folders(j.worker))
}

func (f *Forge) dropStage(_ context.Context, j *job) error {
	return f.Stage.Drop(j.worker.Serial)
}

// generateKeys gives the worker its keys, unless the slot that it has claimed has them.
func (f *Forge) generateKeys(_ context.Context, j *job) error {
	if j.slot != nil {
		return nil
	}
	return f.layKeys(j.folder, &j.worker, j.worker.CreatedAt)
}

// layKeys makes the worker's key and its certificate, and writes them into its folder.
// The key exists in memory for as long as this step and in that folder; nowhere else.
func (f *Forge) layKeys(folder *stage.Stage, w *worker.Worker, now time.Time) error {
	key, err := keyring.NewWorkerKey()
	if err != nil {
		return err
	}
	keyPEM, err := identity.MarshalKey(key.Private())
	if err != nil {
		return err
	}
	certPEM, err := f.Authority.IssueWorker(string(w.Serial), key.Public(), now)
	if err != nil {
		return err
	}
	w.PublicKey, w.Glyph = key.Public(), identity.Glyph(key.Public())
	return lay(folder, f.keyFiles(*w, keyPEM, certPEM))
}

// inject writes what the worker is told: who it is, how it is configured, and
// what the record looked like when it was made.
func (f *Forge) inject(_ context.Context, j *job) error {
	identityJSON, err := f.identityOf(j.worker)
	if err != nil {
		return err
	}
	w := j.worker
	checkpoint, _ := f.Checkpoint()
	accountability, reflection, err := vault.Seed(f.Keys.HostID(), string(w.Serial), checkpoint, w.CreatedAt)
	if err != nil {
		return err
	}
	return j.lay(injected(w, identityJSON, accountability, reflection))
}

// identityOf is a worker's identity.json.
func (f *Forge) identityOf(w worker.Worker) ([]byte, error) {
	me := &identity.Identity{
		WorkerName: w.Name, WorkerType: w.Type, TypeVersion: w.TypeVersion, WorkerSerial: string(w.Serial),
		ModelNumber: string(w.Model), LedgerCode: string(w.LedgerCode), ClassCode: string(w.ClassCode), Port: w.Port,
		PublicKey: w.PublicKey, Glyph: w.Glyph, HostID: f.Keys.HostID(), CheckpointKey: f.Keys.CheckpointKey(), CreatedAt: w.CreatedAt,
		StampKey:    f.Keys.Stamp().Public(),
		ManifestKey: f.Keys.Manifest().Public(),
	}
	return me.Encode()
}

// prepareImage comes before the manifest, which names the image's digest.
func (f *Forge) prepareImage(ctx context.Context, j *job) (err error) {
	j.worker.ImageDigest, err = f.Launcher.Prepare(ctx, j.typ.Image)
	return err
}

// writeManifest lists and signs all that was put into the stage.
func (f *Forge) writeManifest(_ context.Context, j *job) error {
	w := j.worker
	files, err := manifest.Scan(j.folder.Root())
	if err != nil {
		return err
	}
	m := f.manifestOf(w, j.typ, files)
	encoded, err := m.Encode()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(encoded)
	j.worker.ManifestSHA256 = hex.EncodeToString(sum[:])
	return j.lay(seals(w, encoded, manifest.Sign(f.Keys.Manifest().Private(), encoded)))
}

// manifestOf is what the manifest says of a worker with these files.
func (f *Forge) manifestOf(w worker.Worker, t Type, files []manifest.Entry) *manifest.Manifest {
	return &manifest.Manifest{
		Format: manifest.FormatOf(w.Grants), ForgeVersion: worker.ForgeVersion,
		WorkerName: w.Name, WorkerType: w.Type, TypeVersion: w.TypeVersion, WorkerSerial: string(w.Serial),
		ModelNumber: string(w.Model), LedgerCode: string(w.LedgerCode), ClassCode: string(w.ClassCode), Port: w.Port,
		PluginDigest: w.PluginDigest, Modules: modulesOf(t.Image.Path), ImageDigest: w.ImageDigest,
		PublicKey: w.PublicKey, Glyph: w.Glyph, HostID: f.Keys.HostID(), CreatedAt: w.CreatedAt, Grants: w.Grants, Files: files,
	}
}

// modulesOf lists the modules that a plugin says it was built from. A plugin
// that is not a Go binary, or was stripped of it, lists none.
func modulesOf(path string) []manifest.Module {
	modules := []manifest.Module{}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return modules
	}
	for _, dep := range info.Deps {
		modules = append(modules, manifest.Module{Path: dep.Path, Version: dep.Version})
	}
	return modules
}

// promote moves the stage into its place. Only the record has to wait until all of
// it is on disk: until then the row says what to do with what a power cut leaves.
func (f *Forge) promote(_ context.Context, j *job) error {
	if err := j.folder.Promote(); err != nil {
		return err
	}
	j.onDisk = sync.OnceValue(j.folder.Sync)
	return nil
}

func (f *Forge) demote(_ context.Context, j *job) error {
	if j.onDisk != nil { // not both at a time
		_ = j.onDisk()
	}
	return f.Stage.Remove(j.worker.Serial)
}

func (f *Forge) create(ctx context.Context, j *job) error {
	return f.Launcher.Create(ctx, f.Spec(j.worker))
}

func (f *Forge) remove(ctx context.Context, j *job) error {
	return f.Launcher.Remove(ctx, j.worker.Serial)
}

// start starts the worker. While it comes up its folder is written to disk: sooner, the
// two would wait for each other.
func (f *Forge) start(ctx context.Context, j *job) error {
	j.startedAt, j.logged = time.Now(), f.logSize(j.worker.Serial)
	if err := f.Launcher.Start(ctx, j.worker.Serial); err != nil {
		return err
	}
	go func() { _ = j.onDisk() }() // record asks how it went
	return nil
}

func (f *Forge) stop(ctx context.Context, j *job) error {
	return f.Launcher.Stop(ctx, j.worker.Serial, 0)
}

func (f *Forge) awaitHeartbeat(ctx context.Context, j *job) error {
	return f.awaitUp(ctx, j.worker, j.startedAt, j.logged)
}

func (f *Forge) detach(ctx context.Context, j *job) error {
	f.Sessions.Detach(ctx, j.worker.Serial)
	return nil
}

// outcome is the state that a forge leaves its worker in.
func (j *job) outcome() worker.State {
	if j.request.NoStart {
		return worker.StateStopped
	}
	return worker.StateLive
}

// record is the commit point: the worker exists and the record says so, in one
// transaction.
func (f *Forge) record(ctx context.Context, j *job) error {
	if err := j.onDisk(); err != nil {
		return err
	}
	j.worker.State = j.outcome()
	return f.Registry.Update(context.WithoutCancel(ctx), func(tx *registry.Tx) error {
		return commit(tx, j.worker, record.Entry{Kind: record.Forge, Worker: record.FieldsOf(j.worker)})
	})
}

// commit writes a worker's row and the entry that tells of all its fields: what it
// tells of is live, so one that is stopped is told of once more.
func commit(tx *registry.Tx, w worker.Worker, e record.Entry) error {
	if err := tx.UpdateWorker(w); err != nil {
		return err
	}
	entries := []record.Entry{e}
	if w.State == worker.StateStopped {
		entries = append(entries, record.Entry{Kind: record.WorkerStopped, Worker: record.NameOf(w)})
	}
	for _, e := range entries {
		e.At = time.Now()
		line, err := e.Encode()
		if err != nil {
			return err
		}
		if _, err := tx.Append(line); err != nil {
			return err
		}
	}
	return nil
}
