package care

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/vault"
)

// witness is a worker whose vault has a checkpoint that these rows do not extend:
// the record was rolled back, or is another.
type witness struct {
	serial worker.Serial
	saw    uint64 // entries
	err    error
}

// maxVault is more than an accountability file can have.
const maxVault = 64 << 10

// witnesses are the workers whose vaults speak against the rows. What this host
// did not sign says nothing.
func (r *recovery) witnesses(ctx context.Context, now *registry.Registry) ([]witness, error) {
	serials, err := r.serialsIn(instances)
	if err != nil {
		return nil, err
	}
	var found []witness
	var signed [][]byte
	for _, serial := range serials {
		note, err := checkpointIn(filepath.Join(r.Workers, instances, string(serial)))
		if err != nil {
			continue // the comparison of its folder tells of it
		}
		found, signed = append(found, witness{serial: serial}), append(signed, note)
	}
	supports, err := record.SupportEach(ctx, rows{now}, r.verifier, signed)
	if err != nil {
		return nil, err
	}
	var against []witness
	for i, s := range supports {
		if errors.Is(s.Err, worker.ErrCorrupt) {
			against = append(against, witness{found[i].serial, s.Size, s.Err})
		}
	}
	return against, nil
}

// checkpointIn reads the checkpoint that a worker was forged with.
func checkpointIn(dir string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Lstat(vault.AccountabilityFile)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: vault.AccountabilityFile, Err: errors.New("not a regular file")}
	}
	f, err := root.Open(vault.AccountabilityFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxVault))
	if err != nil {
		return nil, err
	}
	var a vault.Accountability
	err = json.Unmarshal(text, &a)
	return []byte(a.Checkpoint), err
}

// hear refuses a record that is behind what workers saw of it, and says how many
// entries the most recent of them saw. What an earlier recovery gave up is known.
func (r *recovery) hear(ctx context.Context, y *replay, made *registry.Registry) (saw uint64, err error) {
	against, err := r.witnesses(ctx, made)
	if err != nil {
		return 0, err
	}
	for _, w := range against {
		if y.gaveUp(w.saw) {
			continue
		}
		if !r.AcceptLoss {
			return 0, worker.Hint(fmt.Errorf("the record does not extend what worker %s saw of it when it was forged: it is rolled back: %w", w.serial, w.err),
				"restore a backup; or, to go on without the rest, dals-host recover --accept-loss")
		}
		saw = max(saw, w.saw)
	}
	return saw, nil
}

// compareVaults lists the workers whose vaults speak against the record.
func (r *recovery) compareVaults(ctx context.Context, now *registry.Registry, known map[worker.Serial]worker.Worker) error {
	against, err := r.witnesses(ctx, now)
	for _, w := range against {
		of := known[w.serial]
		of.Serial = w.serial
		r.differ(of, true, "the record does not extend what this worker saw of it when it was forged, in %s: %v", vault.AccountabilityFile, w.err)
	}
	return err
}
