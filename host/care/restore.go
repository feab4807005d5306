package care

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/proof"
)

// RestoreConfig says what to restore, and where.
type RestoreConfig struct {
	File    io.ReadSeeker
	DataDir string // absolute; it is there, and the caller holds its lock
	// Passphrase opens the keys in the backup. WithoutKeys leaves them there: the
	// folder must have the host's, and workers come back as failed.
	Passphrase  string
	WithoutKeys bool
	Head        []byte // a checkpoint that was kept elsewhere; nil for none
	UIDs        func(hostID string) UIDs
	Logger      hclog.Logger
}

// Restored says what came of a restore.
type Restored struct {
	HostID         string    `json:"host_id"`
	BackupFrom     time.Time `json:"backup_from"`
	Entries        uint64    `json:"entries"` // of the backup's record
	CheckpointSize uint64    `json:"checkpoint_size"`
	Workers        int       `json:"workers"`        // that come back
	Failed         []Missing `json:"failed"`         // that do not, and why
	RefusedBefore  time.Time `json:"refused_before"` // envelopes issued earlier are refused
}

// Restore makes the data folder of a backup, or leaves the target as it was.
func Restore(ctx context.Context, c RestoreConfig) (*Restored, error) {
	r := &restorer{RestoreConfig: c, now: time.Now().UTC().Truncate(time.Millisecond)}
	defer r.close()
	for _, step := range []func(context.Context) error{
		r.checkTarget, r.checkArchive, r.openStaging, r.takeKeys, r.checkSignature, r.extract,
		r.checkHeads, r.settle, r.publish, r.finish,
	} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
	}
	return r.report(), nil
}

// restorer is one restore on its way.
type restorer struct {
	RestoreConfig

	now        time.Time
	header     *Header
	encoded    []byte // the header as it is signed
	signature  []byte
	checkpoint []byte
	sealed     []byte // the encrypted keys
	secrets    secrets

	staging  string
	keys     *keyring.Keyring
	verifier note.Verifier
	registry *registry.Registry
	stage    *stage.Store
	rows     map[worker.Serial]worker.Worker
	batch    batch
	faults   map[worker.Serial]string // of rows that live, and have no whole folder
	restored int
	failed   []Missing
}

// close lets go of everything and removes what is half done.
func (r *restorer) close() {
	if r.registry != nil {
		_ = r.registry.Close() // what was to be kept is in the file
	}
	if r.stage != nil {
		_ = r.stage.Close()
	}
	if r.staging != "" {
		if err := os.RemoveAll(r.staging); err != nil {
			r.Logger.Warn("folder of the restore not removed", "folder", r.staging, "error", err)
		}
	}
}

func (r *restorer) report() *Restored {
	return &Restored{
		HostID: r.header.HostID, BackupFrom: r.header.CreatedAt, Entries: r.header.Entries, CheckpointSize: r.header.CheckpointSize,
		Workers: r.restored, Failed: append([]Missing{}, r.failed...), RefusedBefore: r.notBefore(),
	}
}

// notBefore is when envelopes are taken from: who sent one may have a clock that
// is ahead.
func (r *restorer) notBefore() time.Time { return r.now.Add(envelope.MaxSkew) }

// mayBeThere are the names that a folder may have before a restore.
var mayBeThere = []string{"host.lock", "keys", "plugins", "record"}

// checkTarget refuses a folder with something in it that a restore would have to
// take away, and one that it could not put another in the place of.
func (r *restorer) checkTarget(context.Context) error {
	mounted, err := isMount(r.DataDir)
	if err != nil {
		return err
	}
	if mounted {
		return mountRefused(r.DataDir)
	}
	entries, err := os.ReadDir(r.DataDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(mayBeThere, e.Name()) {
			return worker.Hint(fmt.Errorf("data folder %s is not empty: %s is in it: %w", r.DataDir, e.Name(), worker.ErrConflict),
				"move the folder away, and give its record/checkpoint with --head; a new one may have its keys/ and plugins/")
		}
	}
	return nil
}

func mountRefused(dir string) error {
	return worker.Hint(fmt.Errorf("data folder %s is a mount of its own: the restored one cannot take its place in one step: %w", dir, worker.ErrRefused),
		"restore into a folder below it, with --data-dir "+filepath.Join(dir, "host")+", and serve from there")
}

// checkArchive reads all of the backup once, before anything is written.
func (r *restorer) checkArchive(ctx context.Context) (err error) {
	r.header, r.encoded, r.signature, err = readArchive(until(ctx, r.File), func(_ *Header, p Part, in io.Reader) (err error) {
		switch p.Name {
		case partCheckpoint:
			r.checkpoint, err = readSmall(in, 64<<10)
		case partKeys:
			r.sealed, err = readSmall(in, maxSecrets)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read backup: %w", err)
	}
	if root := os.Geteuid() == 0; r.header.Root != root {
		return worker.Hint(fmt.Errorf("the backup is of a host that ran as root: %t; this is root: %t: %w", r.header.Root, root, worker.ErrRefused),
			"restore as the user that the host ran as: root, or not root")
	}
	return nil
}

func readSmall(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("more than %d bytes: %w", limit, worker.ErrCorrupt)
	}
	return data, err
}

// openStaging makes the folder beside the target, after it has removed what a
// restore that was killed left there.
func (r *restorer) openStaging(context.Context) (err error) {
	parent, form := filepath.Dir(r.DataDir), "."+filepath.Base(r.DataDir)+".restore-"
	if err := removeAll(parent, form); err != nil {
		return err
	}
	if r.staging, err = os.MkdirTemp(parent, form); err != nil {
		return worker.Hint(err, "the folder above the data folder must be writable: the restored one is put together there")
	}
	return nil
}

// takeKeys brings the host's keys together: from the target, and from the
// backup. Both must be of one host.
func (r *restorer) takeKeys(context.Context) (err error) {
	keys := filepath.Join(r.staging, "keys")
	if err := copyFiles(filepath.Join(r.DataDir, "keys"), keys, 0o600); err != nil {
		return fmt.Errorf("copy keys: %w", err)
	}
	if err := r.unseal(); err != nil {
		return fmt.Errorf("%s: %w", partKeys, err)
	}
	for name, data := range r.secrets {
		file, ok := strings.CutPrefix(name, keysFolder)
		if !ok {
			continue
		}
		was, err := os.ReadFile(filepath.Join(keys, file))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = writeDurable(filepath.Join(keys, file), 0o600, bytes.NewReader(data))
		case err == nil && file == keyring.SeedFile && !bytes.Equal(was, data):
			err = worker.Hint(fmt.Errorf("%s is another host's than the backup's: %w", filepath.Join(r.DataDir, "keys", file), worker.ErrConflict),
				"restore into a folder without it")
		}
		if err != nil {
			return err
		}
	}
	if r.keys, err = keyring.Open(keyring.Config{Dir: keys}); errors.Is(err, worker.ErrNotFound) {
		return worker.Hint(fmt.Errorf("the host's keys are neither in the backup nor in the data folder: %w", worker.ErrNotFound),
			"put the host's host.seed into "+filepath.Join(r.DataDir, "keys")+", or use a backup that was made with a passphrase")
	}
	if err != nil {
		return err
	}
	r.verifier, err = note.NewVerifier(r.keys.CheckpointKey())
	return err
}

// unseal opens what only the passphrase opens.
func (r *restorer) unseal() (err error) {
	switch {
	case !r.header.Keys || r.WithoutKeys:
		return nil
	case r.Passphrase == "":
		return worker.Hint(fmt.Errorf("the keys are encrypted: %w", worker.ErrInvalid),
			"give the passphrase with --passphrase-file; or --without-keys, and workers come back as failed")
	}
	r.secrets, err = openSecrets(bytes.NewReader(r.sealed), r.Passphrase)
	return err
}

// checkSignature says whether the very host made this backup.
func (r *restorer) checkSignature(context.Context) error {
	if id := r.keys.HostID(); id != r.header.HostID {
		return fmt.Errorf("the backup is of host %s, the keys are of host %s: %w", r.header.HostID, id, worker.ErrConflict)
	}
	if !proof.Verify(proof.Backup, r.keys.Manifest().Public(), r.encoded, r.signature) {
		return fmt.Errorf("%s: not what host %s signed: %w", partSignature, r.header.HostID, worker.ErrCorrupt)
	}
	return nil
}

// checkHeads refuses a backup whose registry does not support its own checkpoint,
// or one that somebody else has of the same record.
func (r *restorer) checkHeads(ctx context.Context) error {
	rows := rows{r.registry}
	if _, err := record.Supports(ctx, rows, r.verifier, r.checkpoint); err != nil {
		return worker.Hint(fmt.Errorf("the backup's registry does not support its own vault head: %w: %w", worker.ErrCorrupt, err), "use another backup")
	}
	there, err := os.ReadFile(filepath.Join(r.DataDir, "record", "checkpoint"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, head := range []struct {
		what string
		note []byte
		hint string
	}{
		{"the checkpoint in the data folder", there, "what happened since the backup is not in it: if the data folder has the whole record, run dals-host recover there; to go back all the same, move the record away"},
		{"the checkpoint of --head", r.Head, "what happened since the backup is not in it: use a newer backup, or recover the registry from the record"},
	} {
		if head.note == nil {
			continue
		}
		size, err := record.Supports(ctx, rows, r.verifier, head.note)
		if errors.Is(err, worker.ErrInvalid) {
			return fmt.Errorf("%s is none of host %s: %w", head.what, r.header.HostID, err)
		}
		if err != nil {
			return worker.Hint(fmt.Errorf("%s covers %d entries, which the backup's record does not extend: it is rolled back: %w: %w",
				head.what, size, worker.ErrRefused, err), head.hint)
		}
	}
	return nil
}

// settle tells registry and record what was restored and what was not, in one
// transaction.
func (r *restorer) settle(ctx context.Context) error {
	var lines [][]byte
	note := func(e record.Entry) error {
		line, err := e.Encode()
		lines = append(lines, line)
		return err
	}
	for _, m := range r.failed {
		if err := note(record.Entry{At: r.now, Kind: record.WorkerFailed, Worker: record.NameOf(r.rows[m.WorkerSerial]), Reason: m.Reason}); err != nil {
			return err
		}
	}
	err := note(record.Entry{
		At: r.now, Kind: record.Recovered, Recovery: &record.RecoveryFields{From: "backup", Jump: jump, NotBefore: r.notBefore()},
		Reason: fmt.Sprintf("restored from a backup of %s with %d entries; %d workers come back, %d do not",
			r.header.CreatedAt.Format(time.RFC3339), r.header.Entries, r.restored, len(r.failed)),
	})
	if err != nil {
		return err
	}
	uids := r.UIDs(r.header.HostID)
	return r.registry.Update(ctx, func(tx *registry.Tx) error {
		for _, m := range r.failed {
			if err := tx.SetState(m.WorkerSerial, worker.StateFailed, record.Text(m.Reason)); err != nil {
				return err
			}
		}
		for _, line := range lines {
			if _, err := tx.Append(line); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.JumpCounters(jump, uids.Low, uids.High),
			tx.SetMeta(MetaNotBefore, r.notBefore().Format(time.RFC3339Nano)),
			tx.SetMeta(MetaRecord, r.header.HostID),
		)
	})
}

// publish makes the record's files from the restored rows.
func (r *restorer) publish(ctx context.Context) error {
	return publish(ctx, filepath.Join(r.staging, "record"), r.keys.CheckpointSigner(), r.registry, r.Logger)
}

func publish(ctx context.Context, dir string, signer note.Signer, from *registry.Registry, logger hclog.Logger) error {
	log, err := record.Open(ctx, record.Config{Dir: dir, Signer: signer, Source: rows{from}, Logger: logger})
	if err != nil {
		return err
	}
	return log.Publish(ctx)
}

// finish puts the restored folder into the target's place.
func (r *restorer) finish(context.Context) error {
	err := r.registry.Close()
	r.registry = nil
	if err != nil {
		return err
	}
	if err := copyFiles(filepath.Join(r.DataDir, "plugins"), filepath.Join(r.staging, "plugins"), 0o755); err != nil {
		return fmt.Errorf("copy plugins: %w", err)
	}
	// The same file: who waits for the lock waits for the right one.
	if err := os.Link(filepath.Join(r.DataDir, "host.lock"), filepath.Join(r.staging, "host.lock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(r.staging); err != nil {
		return err
	}
	err = exchange(r.staging, r.DataDir)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV) {
		return mountRefused(r.DataDir)
	}
	if err != nil {
		return fmt.Errorf("put the restored folder into place: %w", err)
	}
	return syncDir(filepath.Dir(r.DataDir))
}
