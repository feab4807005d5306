package care

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
)

// Difference is something that is not as the registry says.
type Difference struct {
	WorkerSerial worker.Serial `json:"worker_serial,omitempty"`
	WorkerName   string        `json:"worker_name,omitempty"`
	What         string        `json:"what"`
	// Look is true where a person has to decide; the host settles the others at
	// its next start.
	Look bool `json:"look"`
}

// folders of the folder of workers.
const instances, staging = "instances", ".stage"

// serialsIn lists the workers that have a folder below a folder of workers.
func (r *recovery) serialsIn(below string) ([]worker.Serial, error) {
	entries, err := os.ReadDir(filepath.Join(r.Workers, below))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var serials []worker.Serial
	for _, e := range entries {
		if serial, err := worker.ParseSerial(e.Name()); err == nil {
			serials = append(serials, serial)
		}
	}
	return serials, nil
}

// seeFolders takes the numbers of folders that the record does not tell of: they
// were given in the time after the last checkpoint.
func (r *recovery) seeFolders(ctx context.Context, made *registry.Registry) error {
	for _, below := range []string{instances, staging} {
		serials, err := r.serialsIn(below)
		if err != nil {
			return err
		}
		for _, serial := range serials {
			if _, err := made.Worker(ctx, serial); !errors.Is(err, worker.ErrNotFound) {
				if err != nil {
					return err
				}
				continue
			}
			code, uid := r.numbersIn(filepath.Join(r.Workers, below, string(serial)))
			err := made.Update(ctx, func(tx *registry.Tx) error {
				if r.UIDs.own(uid) {
					if err := tx.TakeUID(uid); err != nil {
						return err
					}
				}
				return tx.SeenNumbers(serial, code)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// numbersIn reads the ledger code and the uid of a folder, as far as they can be
// trusted: by a manifest that this host signed, and by the folder's group.
func (r *recovery) numbersIn(dir string) (code worker.LedgerCode, uid int) {
	if info, err := os.Lstat(dir); err == nil {
		uid = int(info.Sys().(*syscall.Stat_t).Gid)
	}
	m, err := r.manifestIn(dir)
	if err == nil {
		code = worker.LedgerCode(m.LedgerCode)
	}
	if _, _, err := worker.ParseLedgerCode(string(code)); err != nil {
		return "", uid
	}
	return code, uid
}

// manifestIn checks a folder against the manifest in it.
func (r *recovery) manifestIn(dir string) (*manifest.Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return manifest.Check(root, r.Keys.Manifest().Public())
}

// compare lists what on disk and in the launcher is not as the registry says.
func (r *recovery) compare(ctx context.Context) error {
	now, err := registry.OpenReadOnly(ctx, r.Registry)
	if err != nil {
		return err
	}
	defer now.Close()
	all, err := now.Workers(ctx, registry.Filter{IncludeRetired: true})
	if err != nil {
		return err
	}
	known, living := map[worker.Serial]worker.Worker{}, []worker.Worker{}
	for _, w := range all {
		known[w.Serial] = w
		if w.State != worker.StateRetired {
			living = append(living, w)
		}
	}
	r.found.Workers = len(living)
	if err := r.count(ctx, now); err != nil {
		return err
	}
	for _, w := range living {
		if w.State != worker.StateForging && w.State != worker.StateRetiring && w.State != worker.StateUpgrading {
			r.compareFolder(w)
		}
	}
	if err := r.findStrays(known); err != nil {
		return err
	}
	if err := r.compareVaults(ctx, now, known); err != nil {
		return err
	}
	r.compareLauncher(ctx, known, living)
	return nil
}

func (r *recovery) count(ctx context.Context, now *registry.Registry) error {
	clients, err := now.Clients(ctx)
	if err != nil {
		return err
	}
	for _, c := range clients {
		if c.RevokedAt.IsZero() {
			r.found.Clients++
		}
	}
	types, err := now.Types(ctx)
	r.found.Types = len(types)
	return err
}

func (r *recovery) differ(w worker.Worker, look bool, format string, args ...any) {
	what := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	r.found.Differences = append(r.found.Differences, Difference{WorkerSerial: w.Serial, WorkerName: w.Name, What: what, Look: look})
}

// compareFolder compares a worker's folder with its manifest, and that with its
// row.
func (r *recovery) compareFolder(w worker.Worker) {
	dir := filepath.Join(r.Workers, instances, string(w.Serial))
	m, err := r.manifestIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		r.differ(w, true, "it is %s, but has no folder: it may have been retired after the last checkpoint; if so retire it again", w.State)
		return
	}
	if fault, ok := errors.AsType[*manifest.Fault](err); ok {
		for _, d := range fault.Differences {
			r.differ(w, true, "%s", d)
		}
		return
	}
	if err != nil {
		r.differ(w, true, "its folder cannot be read: %v", err)
		return
	}
	text, err := os.ReadFile(filepath.Join(dir, manifest.File))
	if err != nil {
		r.differ(w, true, "%v", err)
		return
	}
	sum := sha256.Sum256(text)
	for _, c := range []struct{ what, disk, row string }{
		{"worker_serial", m.WorkerSerial, string(w.Serial)},
		{"worker_name", m.WorkerName, w.Name},
		{"worker_type", m.WorkerType, w.Type},
		{"type_version", m.TypeVersion, w.TypeVersion},
		{"ledger_code", m.LedgerCode, string(w.LedgerCode)},
		{"port", fmt.Sprint(m.Port), fmt.Sprint(w.Port)},
		{"plugin_sha256", m.PluginDigest, w.PluginDigest},
		{"image_digest", m.ImageDigest, w.ImageDigest},
		{"grants", strings.Join(m.Grants, " "), strings.Join(w.Grants, " ")},
		{"public_key", hex.EncodeToString(m.PublicKey), hex.EncodeToString(w.PublicKey)},
		{"manifest_sha256", hex.EncodeToString(sum[:]), w.ManifestSHA256},
	} {
		if c.disk != c.row {
			r.differ(w, true, "%s: %s is %s, the record says %s", manifest.File, c.what, c.disk, c.row)
		}
	}
	if _, err := os.Stat(r.Binary(w.PluginDigest)); err != nil {
		r.differ(w, true, "plugin binary: %v", err)
	}
}

// findStrays finds folders of workers that do not live.
func (r *recovery) findStrays(known map[worker.Serial]worker.Worker) error {
	folders, err := r.serialsIn(instances)
	if err != nil {
		return err
	}
	for _, serial := range folders {
		w, ok := known[serial]
		switch {
		case ok && w.State == worker.StateRetired:
			r.differ(w, true, "it is retired, but its folder is still there")
		case !ok:
			r.stray(serial)
		}
	}
	stages, err := r.serialsIn(staging)
	for _, serial := range stages {
		r.differ(worker.Worker{Serial: serial}, false, "a forge that was not finished left a stage: the next start removes it")
	}
	return err
}

// stray tells of a folder of which the record does not.
func (r *recovery) stray(serial worker.Serial) {
	m, err := r.manifestIn(filepath.Join(r.Workers, instances, string(serial)))
	if err != nil {
		r.differ(worker.Worker{Serial: serial}, true, "the record does not tell of this folder, and its manifest does not hold: %v", err)
		return
	}
	r.differ(worker.Worker{Serial: serial, Name: m.WorkerName}, true,
		"the record does not tell of this folder, which this host signed: it was forged after the last checkpoint, or never finished; save what is of use and remove it")
}

// compareImage compares what the launcher has made a worker from with what the
// record says of it.
func (r *recovery) compareImage(w worker.Worker, has launch.Image, does string) {
	for _, field := range []struct{ name, has, want string }{
		{"worker type", has.Type, w.Type}, {"type version", has.Version, w.TypeVersion}, {"binary", has.Digest, w.PluginDigest},
	} {
		if field.has != field.want {
			r.differ(w, true, "%s, labelled with %s %q; the record says %q", does, field.name, field.has, field.want)
		}
	}
}

// compareLauncher compares what runs with what should.
func (r *recovery) compareLauncher(ctx context.Context, known map[worker.Serial]worker.Worker, living []worker.Worker) {
	created, err := r.Created(ctx, living)
	if err != nil {
		r.differ(worker.Worker{}, true, "what the launcher runs was not compared: %v", err)
		return
	}
	has := map[worker.Serial]bool{}
	for _, s := range created {
		has[s.Serial] = true
		w, ok := known[s.Serial]
		does := "the launcher has it"
		if s.Running {
			does = fmt.Sprintf("it runs (pid %d)", s.PID)
		}
		switch {
		case !ok:
			r.differ(worker.Worker{Serial: s.Serial}, true, "%s, and the record does not tell of it", does)
		case w.State == worker.StateRetired:
			r.differ(w, true, "%s, and it is retired", does)
		case s.Running && (w.State == worker.StateFailed || w.State == worker.StateStopped):
			r.differ(w, false, "%s, and it is %s: the next start ends it", does, w.State)
		default:
			r.compareImage(w, s.Image, does)
		}
	}
	for _, w := range living {
		if !has[w.Serial] && (w.State == worker.StateLive || w.State == worker.StateRestarting) {
			r.differ(w, false, "the launcher does not have it: the next start makes it again")
		}
	}
}
