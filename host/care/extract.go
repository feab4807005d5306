package care

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
)

// batch is the files of the worker that is being read.
type batch struct {
	serial worker.Serial
	files  map[string][]byte
}

// maxWorkerFile is more than any file of a worker has that a backup holds.
const maxWorkerFile = 16 << 20

// extract reads the backup a second time, now that it is known to be whole and
// this host's, into the staging folder.
func (r *restorer) extract(ctx context.Context) error {
	if _, err := r.File.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for _, dir := range []string{"store", "store/sha256", "workers"} {
		if err := os.Mkdir(filepath.Join(r.staging, dir), 0o700); err != nil {
			return err
		}
	}
	_, again, _, err := readArchive(until(ctx, r.File), func(_ *Header, p Part, in io.Reader) error { return r.take(ctx, p, in) })
	if err == nil && !bytes.Equal(again, r.encoded) {
		err = fmt.Errorf("the file changed while it was read: %w", worker.ErrConflict)
	}
	if err == nil {
		err = r.flush()
	}
	if err == nil {
		err = r.openStore()
	}
	if err != nil {
		return fmt.Errorf("extract: %w", err)
	}
	return r.judgeWorkers(ctx)
}

// openStore lets workers' uids through to their binaries.
func (r *restorer) openStore() error {
	var errs []error
	for _, dir := range []string{"store", "store/sha256"} {
		errs = append(errs, os.Chmod(filepath.Join(r.staging, dir), 0o711), syncDir(filepath.Join(r.staging, dir)))
	}
	return errors.Join(errs...)
}

// take puts one part into its place.
func (r *restorer) take(ctx context.Context, p Part, in io.Reader) error {
	if serial, file, ok := workerFile(p.Name); ok {
		return r.takeWorkerFile(serial, file, in)
	}
	if err := r.flush(); err != nil {
		return err
	}
	switch {
	case p.Name == partRegistry:
		return r.takeRegistry(ctx, in)
	case storeForm.MatchString(p.Name):
		return r.takeBinary(strings.TrimSuffix(strings.TrimPrefix(p.Name, partStore), ".gz"), in)
	}
	return nil // read before
}

func (r *restorer) takeRegistry(ctx context.Context, in io.Reader) error {
	path := filepath.Join(r.staging, "registry.db")
	z, err := gzip.NewReader(in)
	if err == nil {
		err = writeDurable(path, 0o600, z)
	}
	if err != nil {
		return err
	}
	if r.registry, err = registry.Open(ctx, registry.Config{Path: path, Logger: r.Logger}); err != nil {
		return err
	}
	workers, err := r.registry.Workers(ctx, registry.Filter{})
	r.rows, r.faults = map[worker.Serial]worker.Worker{}, map[worker.Serial]string{}
	for _, w := range workers {
		r.rows[w.Serial] = w
		if w.State != worker.StateForging && w.State != worker.StateRetiring {
			r.faults[w.Serial] = "its files are not in the backup"
		}
	}
	if err != nil {
		return err
	}
	r.stage, err = stage.Open(stage.Config{Dir: filepath.Join(r.staging, "workers")})
	return err
}

func (r *restorer) takeBinary(digest string, in io.Reader) error {
	path, sum := filepath.Join(r.staging, "store", "sha256", digest), sha256.New()
	z, err := gzip.NewReader(in)
	if err == nil {
		err = writeDurable(path, 0o555, io.TeeReader(z, sum))
	}
	if err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		return fmt.Errorf("not the binary of that digest: %w", worker.ErrCorrupt)
	}
	return nil
}

func (r *restorer) takeWorkerFile(serial worker.Serial, file string, in io.Reader) error {
	if _, known := r.faults[serial]; !known {
		return fmt.Errorf("the backup's registry has no such worker: %w", worker.ErrCorrupt)
	}
	if serial != r.batch.serial {
		if err := r.flush(); err != nil {
			return err
		}
		r.batch = batch{serial: serial, files: map[string][]byte{}}
	}
	data, err := readSmall(in, maxWorkerFile)
	r.batch.files[file] = data
	return err
}

// flush makes the folder of the worker whose files have been read.
func (r *restorer) flush() error {
	b := r.batch
	r.batch = batch{}
	if b.serial == "" {
		return nil
	}
	prefix := partWorkers + string(b.serial) + "/"
	for name, data := range r.secrets {
		if file, ok := strings.CutPrefix(name, prefix); ok {
			b.files[file] = data
		}
	}
	if err := r.makeFolder(b); err != nil {
		return fmt.Errorf("worker %s: %w", b.serial, err)
	}
	return nil
}

// makeFolder makes a worker's folder as the forge made it, but for what the
// backup does not have: state is empty.
func (r *restorer) makeFolder(b batch) error {
	encoded, signature := b.files[manifest.File], b.files[manifest.SignatureFile]
	if err := manifest.Verify(r.keys.Manifest().Public(), encoded, signature); err != nil {
		return err
	}
	m, err := manifest.Decode(encoded)
	if err != nil {
		return err
	}
	s, err := r.stage.New(b.serial)
	if err != nil {
		return err
	}
	defer s.Close()
	uid := r.uidOf(b.serial)
	host, own := stage.Access{Mode: 0o750, GID: uid}, stage.Access{Mode: 0o700, UID: uid, GID: uid}
	if err := errors.Join(s.Mkdir(".", host), s.Mkdir(launch.StateDir, own), s.Mkdir(launch.RunDir, own), s.Mkdir(launch.LogsDir, stage.Access{Mode: 0o700})); err != nil {
		return err
	}
	for _, e := range m.Files {
		if err := putEntry(s, e, b.files, uid); err != nil {
			return err
		}
	}
	if len(m.Grants) > 0 {
		if err := s.Mkdir(manifest.DoorDir, host); err != nil {
			return err
		}
	}
	for _, name := range []string{manifest.File, manifest.SignatureFile} {
		if err := s.WriteFile(name, b.files[name], stage.Access{Mode: manifest.FileMode, GID: uid}); err != nil {
			return err
		}
	}
	_, err = manifest.Check(s.Root(), r.keys.Manifest().Public())
	switch sum := sha256.Sum256(encoded); {
	case err != nil:
		r.faults[b.serial] = strings.ReplaceAll(err.Error(), "\n", "; ")
	case hex.EncodeToString(sum[:]) != r.rows[b.serial].ManifestSHA256:
		r.faults[b.serial] = manifest.File + " is not the one that the registry has"
	default:
		delete(r.faults, b.serial)
	}
	if err := s.Promote(); err != nil {
		return err
	}
	return s.Sync()
}

// putEntry makes one file or folder of a manifest. A file that the backup does
// not have is left to the check.
func putEntry(s *stage.Stage, e manifest.Entry, files map[string][]byte, uid int) error {
	var mode os.FileMode
	if _, err := fmt.Sscanf(e.Mode, "%o", &mode); err != nil {
		return fmt.Errorf("mode %q of %s: %w", e.Mode, e.Path, worker.ErrCorrupt)
	}
	access := stage.Access{Mode: mode, GID: uid}
	if !groupMayRead(e.Mode) {
		access.UID = uid
	}
	if name, isDir := strings.CutSuffix(e.Path, "/"); isDir {
		return s.Mkdir(name, access)
	}
	data, ok := files[e.Path]
	if !ok {
		return nil
	}
	return s.WriteFile(e.Path, data, access)
}

// uidOf is whom a worker's files belong to: its own uid, or that of a host that
// is not root.
func (r *restorer) uidOf(serial worker.Serial) int {
	if os.Geteuid() != 0 {
		return os.Geteuid()
	}
	return r.rows[serial].UID
}

// judgeWorkers says which workers come back, and gives those of a host that is
// not root its uid.
func (r *restorer) judgeWorkers(ctx context.Context) error {
	missing := map[worker.Serial]string{}
	for _, m := range r.header.Missing {
		missing[m.WorkerSerial] = m.Reason
	}
	var moved []worker.Worker
	for serial, w := range r.rows {
		if uid := r.uidOf(serial); uid != w.UID {
			w.UID = uid
			moved = append(moved, w)
		}
		fault, faulty := r.faults[serial]
		switch {
		case !faulty && w.State != worker.StateForging && w.State != worker.StateRetiring:
			r.restored++
		case faulty && w.State != worker.StateFailed:
			if why := missing[serial]; why != "" {
				fault = "it was not whole when it was backed up: " + why
			}
			r.failed = append(r.failed, Missing{WorkerSerial: serial, WorkerName: w.Name, Reason: "restored without its files: " + fault})
		}
	}
	slices.SortFunc(r.failed, func(a, b Missing) int { return cmp.Compare(a.WorkerSerial, b.WorkerSerial) })
	return r.registry.Update(ctx, func(tx *registry.Tx) error {
		for _, w := range moved {
			if err := tx.UpdateWorker(w); err != nil {
				return err
			}
		}
		return nil
	})
}
