package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	binary    func(digest string) string            // a plugin in the store

	hashes hashes
	once   singleflight.Group
	known  sync.Map // serial → finding
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

// made says that the forge has written, read again and hashed all of a worker's
// files just now.
func (i *integrity) made(serial worker.Serial) { i.known.Store(serial, finding{at: time.Now()}) }

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
	differences, err := i.checkFiles(root, w)
	if err != nil {
		return nil, err
	}
	if fault := i.checkBinary(w); fault != "" {
		differences = append(differences, fault)
	}
	if len(differences) > 0 {
		return differences, nil // what lies in the vault's place need not be a vault
	}
	return i.checkVault(ctx, root, w)
}

// checkFiles compares the folder with the manifest, and the manifest with what
// the registry knows of the worker.
func (i *integrity) checkFiles(root *os.Root, w worker.Worker) (differences []string, err error) {
	m, err := manifest.Check(root, i.keys.Manifest().Public())
	var fault *manifest.Fault
	switch {
	case errors.As(err, &fault):
		return fault.Differences, nil
	case err != nil:
		return nil, fmt.Errorf("check manifest: %w", err)
	}
	text, err := root.ReadFile(manifest.File)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	sum := sha256.Sum256(text)
	for _, c := range []struct{ what, manifest, registry string }{
		{"worker_serial", m.WorkerSerial, string(w.Serial)},
		{"host_id", m.HostID, i.keys.HostID()},
		{"public_key", hex.EncodeToString(m.PublicKey), hex.EncodeToString(w.PublicKey)},
		{"plugin_sha256", m.PluginDigest, w.PluginDigest},
		{"manifest_sha256", hex.EncodeToString(sum[:]), w.ManifestSHA256},
	} {
		if c.manifest != c.registry {
			differences = append(differences, fmt.Sprintf("%s: %s is %s, the registry has %s", manifest.File, c.what, c.manifest, c.registry))
		}
	}
	return differences, nil
}

// checkBinary compares the store's copy of the plugin, which is what runs, with
// its digest. A file that has not changed since is not read again.
func (i *integrity) checkBinary(w worker.Worker) string {
	path := i.binary(w.PluginDigest)
	digest, err := i.hashes.of(path)
	switch {
	case err != nil:
		return fmt.Sprintf("plugin binary: %v", err)
	case digest != w.PluginDigest:
		return fmt.Sprintf("plugin binary %s: sha256 is %s", path, digest)
	}
	return ""
}

// checkVault checks the vault block, and that the record still extends what it
// saw. That it does not is the record's fault, not the worker's.
func (i *integrity) checkVault(ctx context.Context, root *os.Root, w worker.Worker) ([]string, error) {
	block, err := root.ReadFile(vault.AccountabilityFile)
	if err != nil {
		return nil, fmt.Errorf("read vault: %w", err)
	}
	if _, _, err := vault.CheckAccountability(block, string(w.Serial), i.keys.HostID(), i.keys.CheckpointKey()); err != nil {
		return []string{vault.AccountabilityFile + ": " + err.Error()}, nil
	}
	var accountability vault.Accountability
	if err := json.Unmarshal(block, &accountability); err != nil {
		return nil, fmt.Errorf("read vault: %w", err)
	}
	if err := record.Extends(ctx, i.recordDir, i.verifier, accountability.Checkpoint); err != nil {
		return []string{RecordFault + err.Error()}, nil
	}
	return nil, nil
}

// RecordFault begins a difference that is the record's, not the worker's.
const RecordFault = "record: "
