package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// What follows reads a data folder as it is, whether or not a host runs on it:
// who checks the record should not have to trust the process that writes it.

// VerifyVault computes the record of a data folder again and compares.
func VerifyVault(ctx context.Context, dataDir string) (record.Report, error) {
	f, err := openFolder(ctx, dataDir)
	if err != nil {
		return record.Report{}, err
	}
	defer f.registry.Close()
	return record.Verify(ctx, f.paths.record, source{f.registry}, f.verifier)
}

// EntryProof says that one entry is in the record.
type EntryProof = record.Proof

// VaultProof proves an entry and, where that is the admission of an envelope
// which has been answered, the newest result as well. Each of the two can be
// checked alone.
type VaultProof struct {
	EntryProof
	ResultIndex *uint64     `json:"result_index,omitempty"` // nil where there is no result
	Result      *EntryProof `json:"result,omitempty"`       // nil also where it is not published yet
}

// ProveVault proves that an entry is in the record. id is an entry's index, or
// the id of an envelope, which stands for its admission and its result.
func ProveVault(ctx context.Context, dataDir, id string) (*VaultProof, error) {
	f, err := openFolder(ctx, dataDir)
	if err != nil {
		return nil, err
	}
	defer f.registry.Close()
	made := &VaultProof{}
	index, result, err := f.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if made.EntryProof, err = f.prove(ctx, index); err != nil || result == nil {
		return made, err
	}
	made.ResultIndex = result
	switch p, err := f.prove(ctx, *result); {
	case errors.Is(err, worker.ErrUnavailable): // soon: the admission is worth having meanwhile
	case err != nil:
		return nil, err
	default:
		made.Result = &p
	}
	return made, nil
}

func (f *folder) prove(ctx context.Context, index uint64) (record.Proof, error) {
	proof, err := record.Prove(ctx, f.paths.record, source{f.registry}, index)
	if err != nil {
		return record.Proof{}, err
	}
	return proof, proof.Check(f.verifier)
}

// VerifyWorker checks the folder of a worker, named by name or serial, against
// its manifest and its vault block against the record, and names every
// difference.
func VerifyWorker(ctx context.Context, dataDir, ref string) (worker.Worker, []string, error) {
	f, err := openFolder(ctx, dataDir)
	if err != nil {
		return worker.Worker{}, nil, err
	}
	defer f.registry.Close()
	w, err := findWorker(ctx, f.registry, ref)
	if err != nil {
		return worker.Worker{}, nil, err
	}
	if w.State == worker.StateRetired {
		return w, nil, worker.Hint(fmt.Errorf("worker %s is retired: its files are gone: %w", w.Name, worker.ErrNotFound), "see its entries: dals-host vault prove")
	}
	check := &integrity{keys: f.keys, recordDir: f.paths.record, verifier: f.verifier, open: func(serial worker.Serial) (*os.Root, error) {
		return os.OpenRoot(filepath.Join(f.paths.workers, "instances", string(serial)))
	}, binary: f.paths.binary}
	differences, err := check.check(ctx, w)
	return w, differences, err
}

// folder is a data folder opened to read.
type folder struct {
	paths    paths
	registry *registry.Registry
	keys     *keyring.Keyring
	verifier note.Verifier
}

func openFolder(ctx context.Context, dataDir string) (*folder, error) {
	f := &folder{paths: pathsOf(dataDir)}
	var err error
	if f.keys, err = keyring.Open(keyring.Config{Dir: f.paths.keys}); err != nil {
		return nil, worker.Hint(fmt.Errorf("open data folder %s: %w", dataDir, err), "name the data folder of a host with --data-dir")
	}
	if f.verifier, err = note.NewVerifier(f.keys.CheckpointKey()); err != nil {
		return nil, fmt.Errorf("make checkpoint verifier: %w", err)
	}
	f.registry, err = registry.OpenReadOnly(ctx, f.paths.registry)
	return f, err
}

// find turns what a person has of an entry into its index and, for an envelope,
// that of its newest result.
func (f *folder) find(ctx context.Context, id string) (index uint64, result *uint64, err error) {
	if index, err := strconv.ParseUint(id, 10, 64); err == nil {
		return index, nil, nil
	}
	found, err := record.Find(ctx, source{f.registry}, id)
	if err != nil {
		return 0, nil, worker.Hint(err, "give an entry's index, or the id that dals-host send printed")
	}
	index = found[len(found)-1].Index // the oldest: its admission
	for _, e := range found {
		if e.Kind == record.Result && e.Index != index {
			return index, &e.Index, nil
		}
	}
	return index, nil, nil
}

// findWorker finds a worker by name or serial.
func findWorker(ctx context.Context, r *registry.Registry, ref string) (worker.Worker, error) {
	var w worker.Worker
	var err error
	if serial, notOne := worker.ParseSerial(ref); notOne == nil {
		w, err = r.Worker(ctx, serial)
	} else {
		w, err = r.WorkerByName(ctx, ref)
	}
	if errors.Is(err, worker.ErrNotFound) {
		return worker.Worker{}, worker.Hint(fmt.Errorf("worker %s: %w", strconv.QuoteToASCII(ref), worker.ErrNotFound), "run dals-host workers to see those that there are")
	}
	return w, err
}
