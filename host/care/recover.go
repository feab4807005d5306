package care

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
)

// RecoverConfig says where a data folder's things are.
type RecoverConfig struct {
	Registry string // the file
	Record   string // the folder of the record's files
	Workers  string // the folder of workers' folders
	Keys     *keyring.Keyring
	UIDs     UIDs
	Binary   func(digest string) string
	// Created lists what the launcher of these workers has.
	Created func(context.Context, []worker.Worker) ([]launch.Status, error)
	// AcceptLoss goes on with what is sound of a damaged record.
	AcceptLoss bool
	Logger     hclog.Logger
}

// Recovered says what came of a recovery.
type Recovered struct {
	HostID string `json:"host_id"`
	// Rebuilt is false where the registry was sound and was only compared.
	Rebuilt   bool     `json:"rebuilt"`
	Why       string   `json:"why,omitempty"` // what was wrong with the registry
	Entries   uint64   `json:"entries"`       // of the record that could be used
	Published uint64   `json:"published"`     // under the checkpoint
	Damage    []string `json:"damage"`        // of the record's own files
	Kept      []string `json:"kept"`          // what was put aside
	Workers   int      `json:"workers"`       // that are not retired
	Clients   int      `json:"clients"`       // that are not revoked
	Types     int      `json:"types"`
	// RefusedBefore is when envelopes are taken from again.
	RefusedBefore *time.Time   `json:"refused_before,omitempty"`
	Notes         []string     `json:"notes"` // entries that did not fit
	Differences   []Difference `json:"differences"`
}

// NeedsAttention says whether a person has to look at something.
func (r *Recovered) NeedsAttention() bool {
	if len(r.Notes) > 0 {
		return true
	}
	for _, d := range r.Differences {
		if d.Look {
			return true
		}
	}
	return false
}

// Recover makes a registry again that is lost, damaged, or behind the record,
// and compares the registry with what is on disk and in the launcher. A sound
// registry is compared only. The caller holds the data folder's lock.
func Recover(ctx context.Context, c RecoverConfig) (*Recovered, error) {
	r := &recovery{RecoverConfig: c, now: time.Now().UTC().Truncate(time.Millisecond)}
	found, err := r.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	return found, nil
}

type recovery struct {
	RecoverConfig

	now      time.Time
	verifier note.Verifier
	found    Recovered
}

func (r *recovery) run(ctx context.Context) (_ *Recovered, err error) {
	r.found = Recovered{HostID: r.Keys.HostID(), Damage: []string{}, Kept: []string{}, Notes: []string{}, Differences: []Difference{}}
	if r.verifier, err = note.NewVerifier(r.Keys.CheckpointKey()); err != nil {
		return nil, err
	}
	why, err := r.examine(ctx)
	if err != nil {
		return nil, err
	}
	if why != nil {
		r.found.Rebuilt, r.found.Why = true, why.Error()
		if err := r.rebuild(ctx); err != nil {
			return nil, err
		}
	}
	return &r.found, r.compare(ctx)
}

// examine says what is wrong with the registry; nil where nothing is. The error
// is about what is no damage: a newer schema, a disk that cannot be read.
func (r *recovery) examine(ctx context.Context) (why, err error) {
	info, err := os.Stat(r.Registry)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("it is gone"), nil
	case err != nil:
		return nil, err
	case info.Size() == 0:
		return errors.New("it is empty"), nil
	}
	old, err := registry.OpenReadOnly(ctx, r.Registry)
	if errors.Is(err, worker.ErrCorrupt) {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	defer old.Close()
	signed, err := os.ReadFile(filepath.Join(r.Record, "checkpoint"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, worker.Hint(fmt.Errorf("the registry can be read, but the record has no checkpoint in %s: %w", r.Record, worker.ErrCorrupt), "restore a backup")
	}
	if err != nil {
		return nil, err
	}
	r.found.Published, err = record.Supports(ctx, rows{old}, r.verifier, signed)
	switch {
	case errors.Is(err, worker.ErrInvalid):
		return nil, worker.Hint(fmt.Errorf("the registry can be read, but the record's checkpoint is none of this host: %w", err), "restore a backup")
	case errors.Is(err, worker.ErrCorrupt):
		return err, nil
	case err != nil:
		return nil, err
	}
	r.found.Entries, err = old.Size(ctx)
	return nil, err
}

// recoverForm names the folder in the data folder where a registry is made.
const recoverForm = ".recover-"

// rebuild makes the new registry beside the old one and then puts it in its
// place.
func (r *recovery) rebuild(ctx context.Context) (err error) {
	p, err := record.OpenPublished(ctx, r.Record, r.verifier)
	if errors.Is(err, worker.ErrCorrupt) {
		err = worker.Hint(err, "without its checkpoint nothing vouches for the record: restore a backup")
	}
	if err != nil {
		return err
	}
	r.found.Published, r.found.Entries = p.Size, p.Sound
	r.found.Damage = append(r.found.Damage, p.Damage...)
	if p.Sound < p.Size && !r.AcceptLoss {
		return worker.Hint(fmt.Errorf("the record is damaged: of its %d entries the first %d can be used (%s): %w", p.Size, p.Sound, first(p.Damage), worker.ErrCorrupt),
			"restore a backup; or, to go on without the rest, dals-host recover --accept-loss")
	}
	if err := removeAll(filepath.Dir(r.Registry), recoverForm); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(r.Registry), recoverForm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "registry.db")
	if err := r.replay(ctx, p, path, filepath.Join(dir, "record")); err != nil {
		return err
	}
	if err := r.replace(path, filepath.Join(dir, "record")); err != nil {
		return err
	}
	return r.publish(ctx)
}

// publish goes on with the record, so that what was left out stays known.
func (r *recovery) publish(ctx context.Context) (err error) {
	made, err := registry.Open(ctx, registry.Config{Path: r.Registry, Logger: r.Logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, made.Close()) }()
	return publish(ctx, r.Record, r.Keys.CheckpointSigner(), made, r.Logger)
}

func first(list []string) string {
	if len(list) == 0 {
		return "no file"
	}
	return list[0]
}

// replay makes the new registry. Where files of the record are damaged, it makes
// the record's files anew as well.
func (r *recovery) replay(ctx context.Context, p *record.Published, path, recordDir string) (err error) {
	made, err := registry.Open(ctx, registry.Config{Path: path, Logger: r.Logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, made.Close()) }()
	y := &replay{hostID: r.Keys.HostID(), uids: r.UIDs, now: r.now}
	if err := y.run(ctx, p, made); err != nil {
		return err
	}
	if err := r.seeFolders(ctx, made); err != nil {
		return err
	}
	saw, err := r.hear(ctx, y, made)
	if err != nil {
		return err
	}
	if err := r.conclude(ctx, y, max(p.Size, saw)-p.Sound, p.Sound, made); err != nil {
		return err
	}
	r.found.Notes = append(r.found.Notes, y.notes...)
	if len(p.Damage) == 0 {
		return nil
	}
	return publish(ctx, recordDir, r.Keys.CheckpointSigner(), made, r.Logger)
}

// conclude leaves out numbers and records the recovery.
func (r *recovery) conclude(ctx context.Context, y *replay, lost, sound uint64, made *registry.Registry) error {
	refused := r.now.Add(envelope.MaxSkew)
	fields := record.RecoveryFields{From: "record", Lost: lost, Jump: max(jump, int(lost)), NotBefore: refused}
	reason := fmt.Sprintf("the registry was made again from %d entries", sound)
	if lost > 0 {
		reason += fmt.Sprintf("; %d that were published with them are lost", lost)
	}
	line, err := record.Entry{At: r.now, Kind: record.Recovered, Recovery: &fields, Reason: reason}.Encode()
	if err != nil {
		return err
	}
	r.found.RefusedBefore = &refused
	return made.Update(ctx, func(tx *registry.Tx) error { return y.end(tx, fields, line) })
}

// replace puts the old registry aside and the new one in its place. At every
// moment there is a registry, and nobody's log of changes lies beside another's.
func (r *recovery) replace(path, recordDir string) error {
	aside := r.Registry + corruptForm + r.now.Format(asideTime)
	for _, log := range []string{"-wal", "-shm"} {
		if err := r.keep(r.Registry+log, aside+log); err != nil {
			return err
		}
	}
	if _, err := os.Stat(recordDir); err == nil {
		if err := exchange(recordDir, r.Record); err != nil {
			return fmt.Errorf("replace record: %w", err)
		}
		if err := r.keep(recordDir, r.Record+damagedForm+r.now.Format(asideTime)); err != nil {
			return err
		}
	}
	err := exchange(path, r.Registry)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(path, r.Registry)
	} else if err == nil {
		err = r.keep(path, aside)
	}
	if err != nil {
		return fmt.Errorf("replace registry: %w", err)
	}
	return syncDir(filepath.Dir(r.Registry))
}

// keep puts a file or folder aside, if it is there.
func (r *recovery) keep(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("put aside: %w", err)
	}
	r.found.Kept = append(r.found.Kept, filepath.Base(to))
	return nil
}
