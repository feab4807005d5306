package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/care"
	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// Backup writes a backup of this host.
func (b backend) Backup(ctx context.Context, passphrase string, w io.Writer) error {
	h, err := care.Backup(ctx, care.Source{
		DataDir: b.paths.data, KeysDir: b.paths.keys, Version: b.Version, Registry: b.registry, Keys: b.keys,
		Checkpoint: b.record.Checkpoint, Worker: b.stage.OpenRoot, Binary: b.paths.binary, Passphrase: passphrase,
	}, w)
	if err != nil {
		return err
	}
	b.Logger.Info("backed up", "entries", h.Entries, "workers", h.Workers, "missing", len(h.Missing), "keys", h.Keys)
	return nil
}

// BackupHeader says what is in a backup.
type BackupHeader = care.Header

// MissingWorker is a worker whose files are not in a backup, or not whole.
type MissingWorker = care.Missing

// InspectBackup reads a backup to its end, checks that it is whole, and says
// what is in it. Whose it is only its host's keys can say: see Restore.
func InspectBackup(r io.Reader) (*BackupHeader, error) { return care.Inspect(r) }

// RestoreOptions say what to restore, and where.
type RestoreOptions struct {
	DataDir     string
	File        io.ReadSeeker
	Passphrase  string // of the keys; empty where they are not to be taken
	WithoutKeys bool   // restore without the keys that are in the backup
	Head        []byte // a checkpoint that was kept elsewhere; nil for none
	Logger      hclog.Logger
}

// Restored says what came of a restore.
type Restored = care.Restored

// Restore makes a data folder from a backup, or leaves everything as it was. No
// host may run on the folder.
func Restore(ctx context.Context, o RestoreOptions) (_ *Restored, err error) {
	h := &Host{Config: Config{DataDir: o.DataDir, Logger: o.Logger}, paths: pathsOf(o.DataDir)}
	_, missing := os.Stat(o.DataDir)
	if err := h.lockFolder(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && errors.Is(missing, os.ErrNotExist) {
			_, _, _ = os.Remove(h.paths.lock), os.Remove(h.paths.plugins), os.Remove(h.paths.data) // made by us, and empty
		}
		err = errors.Join(err, h.close())
	}()
	return care.Restore(ctx, care.RestoreConfig{
		File: o.File, DataDir: o.DataDir, Passphrase: o.Passphrase, WithoutKeys: o.WithoutKeys, Head: o.Head,
		UIDs: uidsOf, Logger: o.Logger,
	})
}

// RecoverOptions say what to recover.
type RecoverOptions struct {
	DataDir    string
	AcceptLoss bool // go on with what is sound of a damaged record
	Logger     hclog.Logger
}

// Recovered says what came of a recovery.
type Recovered = care.Recovered

// Recover makes the registry of a data folder again from its record, where it is
// lost or damaged, and compares it with what is there. No host may run on the
// folder.
func Recover(ctx context.Context, o RecoverOptions) (_ *Recovered, err error) {
	h := &Host{Config: Config{DataDir: o.DataDir, Logger: o.Logger}, paths: pathsOf(o.DataDir)}
	// The keys first: nothing is made of a folder that is no host's.
	if h.keys, err = keyring.Open(keyring.Config{Dir: h.paths.keys}); err != nil {
		return nil, worker.Hint(fmt.Errorf("open data folder %s: %w", o.DataDir, err), "name the data folder of a host with --data-dir; one without its keys has to be restored from a backup")
	}
	defer func() { err = errors.Join(err, h.close()) }()
	for _, lock := range []func(context.Context) error{h.lockFolder, h.lockIdentity} {
		if err := lock(ctx); err != nil {
			return nil, err
		}
	}
	return care.Recover(ctx, care.RecoverConfig{
		Registry: h.paths.registry, Record: h.paths.record, Workers: h.paths.workers, Keys: h.keys,
		UIDs: uidsOf(h.keys.HostID()), Binary: h.paths.binary, Created: h.created, AcceptLoss: o.AcceptLoss, Logger: o.Logger,
	})
}

// created lists what the launchers have of this host: those of the workers, and
// those that have left a folder. A private containerd that does not run is
// started for it, and stays for the next host.
func (h *Host) created(ctx context.Context, living []worker.Worker) ([]launch.Status, error) {
	names := map[string]bool{}
	for _, w := range living {
		names[w.Launcher] = true
	}
	for _, name := range []string{launcherProcess, launcherContainerd} {
		if _, err := os.Stat(filepath.Join(h.paths.data, name)); err == nil {
			names[name] = true
		}
	}
	var all []launch.Status
	for name := range names {
		l, _, err := pickLauncher(ctx, Config{DataDir: h.DataDir, Launcher: name, Logger: h.Logger}, h.keys.HostID(), nil)
		if err != nil {
			return nil, err
		}
		list, err := l.List(ctx)
		if err = errors.Join(err, l.Close()); err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// uidsOf is the range that a root host takes its workers' uids from.
func uidsOf(hostID string) care.UIDs {
	if os.Geteuid() != 0 {
		return care.UIDs{}
	}
	first := firstUIDOf(hostID)
	return care.UIDs{Low: first + probeUIDs, High: first + uidsPerHost - 1}
}

// notBefore is when envelopes are taken from after a recovery; zero where there
// was none.
func (h *Host) notBefore(ctx context.Context) (time.Time, error) {
	text, err := h.registry.Meta(ctx, care.MetaNotBefore)
	if errors.Is(err, worker.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("read when envelopes are taken from: %w: %w", worker.ErrCorrupt, err)
	}
	return at, nil
}

// registryIsGone says that there is a record, and no registry that it could be
// a view of: a new one must not take its place unasked.
func (h *Host) registryIsGone() error {
	info, err := os.Stat(h.paths.registry)
	switch {
	case err == nil && info.Size() > 0:
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil // opening it says why
	}
	if _, err := os.Stat(filepath.Join(h.paths.record, "checkpoint")); err != nil {
		return nil
	}
	return worker.Hint(fmt.Errorf("open registry: %s is gone or empty, and there is a record: %w", h.paths.registry, worker.ErrCorrupt),
		"run dals-host recover: it makes the registry anew from the record")
}
