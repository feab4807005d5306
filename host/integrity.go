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

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

// integrity is the host's own check of workers' folders: what the forge made is
// there, unchanged, and the record still extends what the vault block says it
// was. The worker reports its own check; both must hold.
type integrity struct {
	stage     *stage.Store
	keys      *keyring.Keyring
	recordDir string
	verifier  note.Verifier

	mu    sync.Mutex
	known map[worker.Serial]finding
}

// finding is what a check found; it is good for a short while, so that asking
// often costs little.
type finding struct {
	fault string // empty when all holds
	at    time.Time
}

const findingLife = 5 * time.Second

// fault names what is wrong with the folder of w, or is "".
func (i *integrity) fault(ctx context.Context, w worker.Worker) string {
	i.mu.Lock()
	f, ok := i.known[w.Serial]
	i.mu.Unlock()
	if ok && time.Since(f.at) < findingLife {
		return f.fault
	}
	f = finding{at: time.Now()}
	if differences, err := i.check(ctx, w); err != nil {
		f.fault = err.Error()
	} else {
		f.fault = strings.Join(differences, "; ")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.known == nil {
		i.known = map[worker.Serial]finding{}
	}
	i.known[w.Serial] = f
	return f.fault
}

// check compares the worker's folder with its manifest and its vault block with
// the record, and names every difference.
func (i *integrity) check(ctx context.Context, w worker.Worker) ([]string, error) {
	root, err := i.stage.OpenRoot(w.Serial)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	differences, err := manifestDifferences(root, i.keys, w)
	if err != nil {
		return nil, err
	}
	block, err := root.ReadFile("vault/accountability.json")
	if err != nil {
		return append(differences, "vault/accountability.json: "+err.Error()), nil
	}
	if err := i.checkVault(ctx, w, block); err != nil {
		differences = append(differences, "vault/accountability.json: "+err.Error())
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
