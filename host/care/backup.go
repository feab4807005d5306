package care

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/proof"
)

// Source is a running host, as a backup needs it.
type Source struct {
	DataDir    string // parts are put together in a folder of it
	KeysDir    string
	Version    string // of the host
	Registry   *registry.Registry
	Keys       *keyring.Keyring
	Checkpoint func() (signed []byte, size uint64) // the record's, as published last
	Worker     func(worker.Serial) (*os.Root, error)
	Binary     func(digest string) string // a plugin in the store
	// Passphrase encrypts the keys; without one they are left out.
	Passphrase string

	workFactor int // of scrypt; 0 for age's own
}

// spoolForm names the folder in the data folder where a backup is put together.
const spoolForm = ".backup-"

// How often a backup begins again because workers were changed while their files
// were read, and how long it waits before: an upgrade takes its time.
const (
	snapshots     = 5
	snapshotPause = time.Second
)

// Backup writes a backup of a running host to w. Workers whose files are not
// what the registry says are left out and named in the header: the backup is of
// use without them.
func Backup(ctx context.Context, s Source, w io.Writer) (*Header, error) {
	dir, err := os.MkdirTemp(s.DataDir, spoolForm)
	if err != nil {
		return nil, fmt.Errorf("make folder for the backup: %w", err)
	}
	h, err := s.backup(ctx, dir, w)
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	return h, nil
}

// SweepBackups removes what a host that was killed left of backups.
func SweepBackups(dataDir string) error { return removeAll(dataDir, spoolForm) }

func (s Source) backup(ctx context.Context, dir string, w io.Writer) (*Header, error) {
	for n := 1; ; n++ {
		at := filepath.Join(dir, fmt.Sprint(n))
		if err := os.Mkdir(at, 0o700); err != nil {
			return nil, err
		}
		h, err := s.attempt(ctx, at, n == snapshots, w)
		if !errors.Is(err, errMoved) {
			return h, err
		}
		if err := os.RemoveAll(at); err != nil {
			return nil, err
		}
		select {
		case <-time.After(snapshotPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errMoved says that a worker was changed between the snapshot and the reading
// of its files.
var errMoved = errors.New("workers were changed meanwhile")

// attempt makes a backup of one snapshot.
func (s Source) attempt(ctx context.Context, dir string, last bool, w io.Writer) (*Header, error) {
	sp, err := newSpool(dir)
	if err != nil {
		return nil, err
	}
	defer sp.file.Close()
	h := &Header{
		Format: Format, HostID: s.Keys.HostID(), HostVersion: s.Version, CreatedAt: time.Now(), Root: os.Geteuid() == 0, Keys: s.Passphrase != "",
	}
	// The checkpoint first: the snapshot has the rows that it covers.
	checkpoint, size := s.Checkpoint()
	h.CheckpointSize = size
	if err := sp.add(partCheckpoint, bytes.NewReader(checkpoint)); err != nil {
		return nil, err
	}
	workers, err := s.spoolRegistry(ctx, dir, sp, h)
	if err != nil {
		return nil, err
	}
	hidden, err := s.spoolWorkers(ctx, sp, h, workers, last)
	if err != nil {
		return nil, err
	}
	if h.Keys {
		if err := s.spoolKeys(sp, hidden); err != nil {
			return nil, err
		}
	}
	return h, s.write(ctx, sp, h, w)
}

// spoolRegistry takes in one moment of the registry and says which workers live
// in it.
func (s Source) spoolRegistry(ctx context.Context, dir string, sp *spool, h *Header) ([]worker.Worker, error) {
	path := filepath.Join(dir, "registry.db")
	if err := s.Registry.Snapshot(ctx, path); err != nil {
		return nil, err
	}
	snapshot, err := registry.OpenReadOnly(ctx, path)
	if err != nil {
		return nil, err
	}
	workers, err := snapshot.Workers(ctx, registry.Filter{})
	if err == nil {
		h.Entries, err = snapshot.Size(ctx)
	}
	if err = errors.Join(err, snapshot.Close()); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := sp.addPacked(partRegistry, f); err != nil {
		return nil, err
	}
	return workers, os.Remove(path)
}

// spoolWorkers takes in the files of the workers and what they run, and returns
// the files that only their workers may read.
func (s Source) spoolWorkers(ctx context.Context, sp *spool, h *Header, workers []worker.Worker, last bool) (secrets, error) {
	hidden, binaries := secrets{}, map[string]error{}
	for _, w := range workers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if w.State == worker.StateForging || w.State == worker.StateRetiring {
			continue // a restored host ends what was begun
		}
		mark := sp.mark()
		own, err := s.spoolWorker(sp, w)
		if err == nil {
			if _, known := binaries[w.PluginDigest]; !known {
				binaries[w.PluginDigest] = s.spoolBinary(sp, w.PluginDigest)
			}
			err = binaries[w.PluginDigest]
		}
		if err == nil {
			h.Workers++
			maps.Copy(hidden, own)
			continue
		}
		sp.rollback(mark)
		if moved, err := s.moved(ctx, w); err != nil || moved && !last {
			return nil, errors.Join(err, errMoved)
		}
		h.Missing = append(h.Missing, Missing{WorkerSerial: w.Serial, WorkerName: w.Name, Reason: strings.ReplaceAll(err.Error(), "\n", "; ")})
	}
	return hidden, nil
}

// moved says whether a worker is not what it was in the snapshot.
func (s Source) moved(ctx context.Context, was worker.Worker) (bool, error) {
	now, err := s.Registry.Worker(ctx, was.Serial)
	if errors.Is(err, worker.ErrNotFound) {
		return true, nil
	}
	return now.State != was.State || now.ManifestSHA256 != was.ManifestSHA256 || now.State == worker.StateUpgrading, err
}

// spoolWorker takes in a worker's files as its signed manifest lists them.
func (s Source) spoolWorker(sp *spool, w worker.Worker) (secrets, error) {
	root, err := s.Worker(w.Serial)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	m, err := manifest.Check(root, s.Keys.Manifest().Public())
	if err != nil {
		return nil, fmt.Errorf("check manifest: %w", err)
	}
	own := secrets{}
	put := func(name string, open bool, data []byte) error {
		name = partWorkers + string(w.Serial) + "/" + name
		if open {
			return sp.add(name, bytes.NewReader(data))
		}
		own[name] = data
		return nil
	}
	for _, e := range m.Files {
		if strings.HasSuffix(e.Path, "/") {
			continue // the manifest has it
		}
		data, err := root.ReadFile(e.Path)
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != e.SHA256 {
			return nil, fmt.Errorf("%s: changed while it was read: %w", e.Path, worker.ErrConflict)
		}
		if err := put(e.Path, groupMayRead(e.Mode), data); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{manifest.File, manifest.SignatureFile} {
		data, err := root.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(data); name == manifest.File && hex.EncodeToString(sum[:]) != w.ManifestSHA256 {
			return nil, fmt.Errorf("%s is not the one that the registry has: %w", name, worker.ErrConflict)
		}
		if err := put(name, true, data); err != nil {
			return nil, err
		}
	}
	return own, nil
}

// groupMayRead says whether a file, by its mode in a manifest, is for more than
// the worker alone.
func groupMayRead(mode string) bool {
	return len(mode) > 1 && (mode[len(mode)-2]-'0')&0o4 != 0
}

// spoolBinary takes in the store's copy of a plugin.
func (s Source) spoolBinary(sp *spool, digest string) error {
	f, err := os.OpenFile(s.Binary(digest), os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("plugin binary: %w", err)
	}
	defer f.Close()
	mark, sum := sp.mark(), sha256.New()
	if err := sp.addPacked(partStore+digest+".gz", io.TeeReader(f, sum)); err != nil {
		return fmt.Errorf("plugin binary: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		sp.rollback(mark)
		return fmt.Errorf("plugin binary: its sha256 is %s: %w", got, worker.ErrCorrupt)
	}
	return nil
}

// spoolKeys takes in the host's keys and what is hidden of the workers,
// encrypted.
func (s Source) spoolKeys(sp *spool, hidden secrets) error {
	for _, name := range []string{keyring.SeedFile, keyring.OperatorFile} {
		data, err := os.ReadFile(filepath.Join(s.KeysDir, name))
		if errors.Is(err, fs.ErrNotExist) && name == keyring.OperatorFile {
			continue // the operator keeps it elsewhere
		}
		if err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		hidden[keysFolder+name] = data
	}
	sealed, err := hidden.seal(s.Passphrase, s.workFactor)
	if err != nil {
		return err
	}
	return sp.add(partKeys, bytes.NewReader(sealed))
}

// write puts the archive together.
func (s Source) write(ctx context.Context, sp *spool, h *Header, w io.Writer) error {
	h.Parts = sp.parts
	encoded, err := h.encode()
	if err != nil {
		return fmt.Errorf("write %s: %w", partHeader, err)
	}
	signature := proof.Sign(proof.Backup, s.Keys.Manifest().Private(), encoded)
	a := newArchiveWriter(w, h.CreatedAt)
	if err := a.add(partHeader, int64(len(encoded)), bytes.NewReader(encoded)); err != nil {
		return err
	}
	if err := a.add(partSignature, int64(len(signature)), bytes.NewReader(signature)); err != nil {
		return err
	}
	err = sp.each(func(p Part, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return a.add(p.Name, p.Size, r)
	})
	if err != nil {
		return err
	}
	return a.seal()
}
