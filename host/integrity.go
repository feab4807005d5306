package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/singleflight"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

// integrity is the host's own check of workers' folders: what the forge made is
// there, unchanged, and the record still extends what the vault block says it
// was. The worker reports its own check; both must hold.
type integrity struct {
	keys      *keyring.Keyring
	recordDir string
	verifier  note.Verifier
	open      func(worker.Serial) (*os.Root, error) // a worker's folder

	once  singleflight.Group
	known sync.Map // serial → finding
}

// finding is what a check found; it is good for a short while, so that asking
// often costs little.
type finding struct {
	fault string // empty when all holds
	at    time.Time
}

const (
	findingLife = 5 * time.Second
	checkLimit  = 10 * time.Second
)

// fault names what is wrong with the folder of w, or is "". Callers that come
// together share one check; none can spoil it by leaving.
func (i *integrity) fault(ctx context.Context, w worker.Worker) string {
	if f, ok := i.known.Load(w.Serial); ok && time.Since(f.(finding).at) < findingLife {
		return f.(finding).fault
	}
	fault, _, _ := i.once.Do(string(w.Serial), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkLimit)
		defer cancel()
		differences, err := i.check(ctx, w)
		if err != nil {
			return err.Error(), nil
		}
		f := finding{fault: strings.Join(differences, "; "), at: time.Now()}
		i.known.Store(w.Serial, f)
		return f.fault, nil
	})
	return fault.(string)
}

// forget lets go of a worker that is no more.
func (i *integrity) forget(serial worker.Serial) { i.known.Delete(serial) }

// check compares the worker's folder with its manifest and its vault block with
// the record, and names every difference.
func (i *integrity) check(ctx context.Context, w worker.Worker) ([]string, error) {
	root, err := i.open(w.Serial)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	differences, err := manifestDifferences(root, i.keys, w)
	if err != nil {
		return nil, err
	}
	block, err := root.ReadFile(vault.AccountabilityFile)
	if err == nil {
		err = i.checkVault(ctx, w, block)
	}
	if err != nil {
		differences = append(differences, vault.AccountabilityFile+": "+err.Error())
	}
	return differences, nil
}

func (i *integrity) checkVault(ctx context.Context, w worker.Worker, block []byte) error {
	if _, _, err := vault.CheckAccountability(block, string(w.Serial), i.keys.HostID(), i.keys.CheckpointKey()); err != nil {
		return err
	}
	var accountability vault.Accountability
	if err := json.Unmarshal(block, &accountability); err != nil {
		return err
	}
	return record.Extends(ctx, i.recordDir, i.verifier, accountability.Checkpoint)
}

func manifestDifferences(root *os.Root, keys *keyring.Keyring, w worker.Worker) ([]string, error) {
	m, err := manifest.Check(root, keys.Manifest().Public())
	var fault *manifest.Fault
	switch {
	case errors.As(err, &fault):
		return fault.Differences, nil
	case err != nil:
		return nil, fmt.Errorf("check manifest: %w", err)
	case m.WorkerSerial != string(w.Serial):
		return []string{fmt.Sprintf("%s: it is the manifest of worker %s", manifest.File, m.WorkerSerial)}, nil
	}
	return nil, nil
}
