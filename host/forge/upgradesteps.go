package forge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

// kept are the folders that go over to the new version as they are.
var kept = []string{launch.StateDir, launch.LogsDir}

// openNext opens the stage of the new version's folder. State and log are taken
// over later: that a folder has them says that it is the worker's.
func (f *Forge) openNext(_ context.Context, j *job) error {
	if err := f.Stage.Drop(j.worker.Serial); err != nil { // what a crash may have left
		return err
	}
	folder, err := f.Stage.New(j.worker.Serial)
	if err != nil {
		return err
	}
	j.folder = folder
	return j.lay(slices.DeleteFunc(folders(j.worker), func(file file) bool {
		return slices.ContainsFunc(kept, func(name string) bool { return file.path == name+"/" })
	}))
}

// carryOver writes what the new version is told. Keys and vault are the worker's
// own, as its manifest says that they are: a folder that does not hold is not
// given a new manifest.
func (f *Forge) carryOver(_ context.Context, j *job) error {
	old, err := f.readKept(j.was)
	if err != nil {
		return err
	}
	identityJSON, err := f.identityOf(j.worker)
	if err != nil {
		return err
	}
	return j.lay(slices.Concat(
		f.keyFiles(j.worker, old[workerKey], old[workerCert]),
		injected(j.worker, identityJSON, old[vault.AccountabilityFile], old[vault.ReflectionFile]),
	))
}

// readKept reads the files that go over to the new version, after a check of the
// folder that they are in.
func (f *Forge) readKept(w worker.Worker) (map[string][]byte, error) {
	root, err := f.Stage.OpenRoot(w.Serial)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	m, err := manifest.Check(root, f.Keys.Manifest().Public())
	if err == nil {
		err = isManifestOf(root, w)
	}
	if err != nil {
		return nil, worker.Hint(fmt.Errorf("the worker's folder is not as it was made: %w: %w", err, worker.ErrCorrupt),
			"run dals-host verify "+w.Name+"; a worker of which files were changed cannot be upgraded")
	}
	files := map[string][]byte{}
	for _, e := range m.Files {
		if !slices.Contains([]string{workerKey, workerCert, vault.AccountabilityFile, vault.ReflectionFile}, e.Path) {
			continue
		}
		if files[e.Path], err = root.ReadFile(e.Path); err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(files[e.Path]); hex.EncodeToString(sum[:]) != e.SHA256 {
			return nil, fmt.Errorf("read %s: it is being changed: %w", e.Path, worker.ErrCorrupt)
		}
	}
	return files, nil
}

// isManifestOf says whether the folder's manifest is the one that the registry
// knows.
func isManifestOf(root *os.Root, w worker.Worker) error {
	text, err := root.ReadFile(manifest.File)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != w.ManifestSHA256 {
		return errors.New(manifest.File + ": it is another one than the registry has")
	}
	return nil
}

func (f *Forge) endOld(ctx context.Context, j *job) error {
	f.Keeper.Release(j.was.Serial)
	return f.halt(ctx, j.was, j.grace)
}

func (f *Forge) setAside(_ context.Context, j *job) error { return f.Stage.SetAside(j.worker.Serial) }

func (f *Forge) putBack(_ context.Context, j *job) error {
	return f.Stage.PutBack(j.worker.Serial, kept...)
}

// promoteOnDisk is a promotion that waits: state is moved only to where it stays.
func (f *Forge) promoteOnDisk(ctx context.Context, j *job) error {
	if err := f.promote(ctx, j); err != nil {
		return err
	}
	return j.onDisk()
}

func (f *Forge) takeOver(_ context.Context, j *job) error {
	return f.Stage.TakeOver(j.worker.Serial, kept...)
}

// replace makes a new container: the old one names the old image.
func (f *Forge) replace(ctx context.Context, j *job) error {
	if err := f.remove(ctx, j); err != nil {
		return err
	}
	return f.create(ctx, j)
}

// awaitInTime bounds the wait for the first heartbeat alone: what comes before it
// takes the time that it takes.
func (f *Forge) awaitInTime(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(ctx, j.within)
	defer cancel()
	return f.awaitHeartbeat(ctx, j)
}

// stopAgain ends a worker that was stopped before.
func (f *Forge) stopAgain(ctx context.Context, j *job) error {
	if j.worker.State != worker.StateStopped {
		return nil
	}
	return f.halt(ctx, j.worker, j.grace)
}
