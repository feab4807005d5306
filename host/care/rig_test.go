package care

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const passphrase = "correct horse"

// testUIDs are the uids of a rig's workers, when the tests run as root.
var testUIDs = UIDs{Low: 1<<30 + 100, High: 1<<30 + 9999}

// rig is a data folder such as a host makes it, with its parts open, and no host.
type rig struct {
	t        testing.TB
	dir      string
	keys     *keyring.Keyring
	registry *registry.Registry
	log      *record.Log
	binary   []byte
	digest   string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	parent := t.TempDir()
	g := &rig{t: t, dir: filepath.Join(parent, "data"), binary: bytes.Repeat([]byte("a plugin "), 1000)}
	sum := sha256.Sum256(g.binary)
	g.digest = hex.EncodeToString(sum[:])
	for _, dir := range []string{"", "store", "store/sha256", "plugins"} {
		g.must(os.Mkdir(g.at(dir), 0o700))
	}
	g.must(os.WriteFile(g.store(g.digest), g.binary, 0o555))
	g.must(os.WriteFile(g.at("host.lock"), nil, 0o600))
	var err error
	g.keys, err = keyring.Open(keyring.Config{Dir: g.at("keys"), First: true})
	g.must(err)
	operator, _, err := g.keys.LoadOrCreateOperator(true)
	g.must(err)
	g.open()
	c := registry.Client{ID: envelope.ClientID(operator.Public()), Name: "operator", PublicKey: operator.Public(), CreatedAt: now()}
	g.client(record.ClientAdded, c)
	g.update(func(tx *registry.Tx) error {
		return errors.Join(tx.SetMeta(MetaOperator, c.ID), tx.SetMeta(MetaRecord, g.keys.HostID()))
	})
	return g
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

func (g *rig) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) at(name string) string { return filepath.Join(g.dir, filepath.FromSlash(name)) }

func (g *rig) store(digest string) string { return g.at("store/sha256/" + digest) }

func (g *rig) open() {
	g.t.Helper()
	var err error
	g.registry, err = registry.Open(context.Background(), registry.Config{Path: g.at("registry.db")})
	g.must(err)
	g.log, err = record.Open(context.Background(), record.Config{
		Dir: g.at("record"), Signer: g.keys.CheckpointSigner(), Source: rows{g.registry}, Logger: hclog.NewNullLogger(),
	})
	g.must(err)
	g.t.Cleanup(func() { _ = g.registry.Close() })
}

// close ends the writing, with everything published.
func (g *rig) close() {
	g.t.Helper()
	g.publish()
	g.must(g.registry.Close())
}

// copy is a rig over a copy of the folder of one that was closed.
func (g *rig) copy(t testing.TB) *rig {
	t.Helper()
	c := *g
	c.t, c.dir = t, filepath.Join(t.TempDir(), "data")
	if said, err := exec.Command("cp", "-a", g.dir, c.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return &c
}

func (g *rig) publish() { g.t.Helper(); g.must(g.log.Publish(g.t.Context())) }

func (g *rig) update(closure func(*registry.Tx) error) {
	g.t.Helper()
	g.must(g.registry.Update(context.Background(), closure))
}

// note appends an entry with what it tells, in one transaction.
func (g *rig) note(e record.Entry, also func(*registry.Tx) error) {
	g.t.Helper()
	if e.At.IsZero() {
		e.At = now()
	}
	line, err := e.Encode()
	g.must(err)
	g.update(func(tx *registry.Tx) error {
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		_, err := tx.Append(line)
		return err
	})
}

func (g *rig) client(kind record.Kind, c registry.Client) {
	g.t.Helper()
	at := now()
	if kind == record.ClientAdded {
		at = c.CreatedAt
	}
	g.note(record.Entry{At: at, Kind: kind, Client: &record.ClientFields{Name: c.Name, ID: c.ID, PublicKey: c.PublicKey}}, func(tx *registry.Tx) error {
		if kind == record.ClientAdded {
			return tx.AddClient(c)
		}
		_, err := tx.RevokeClient(c.Name, at)
		return err
	})
}

// forge makes a worker as the forge does: its folder, its row, its entry.
func (g *rig) forge(name string) worker.Worker {
	g.t.Helper()
	key, err := keyring.NewWorkerKey()
	g.must(err)
	w := worker.Worker{
		Name: name, Type: "template", TypeVersion: "1.2.3", PluginDigest: g.digest, ClassCode: "A1", Model: "DMN-TP-1", State: worker.StateForging,
		Launcher: "process", PublicKey: key.Public(), Glyph: identity.Glyph(key.Public()), Config: []byte(`{"a":1,"b":"<&>"}`),
		RequestSHA256: "dd", Limits: worker.Limits{CPUMillis: 500}, CreatedAt: now(), UID: os.Geteuid(),
	}
	g.update(func(tx *registry.Tx) (err error) {
		if w.Serial, err = tx.AllocateSerial(w.Model); err != nil {
			return err
		}
		if os.Geteuid() == 0 {
			if w.UID, err = tx.AllocateUID(testUIDs.Low, testUIDs.High); err != nil {
				return err
			}
		}
		w.Port = 20000 + w.UID%1000
		if w.LedgerCode, err = tx.AllocateLedgerCode(w.ClassCode); err != nil {
			return err
		}
		return tx.InsertWorker(w)
	})
	g.folder(&w, key)
	w.State = worker.StateLive
	g.note(record.Entry{Kind: record.Forge, Worker: record.FieldsOf(w)}, func(tx *registry.Tx) error { return tx.UpdateWorker(w) })
	return w
}

func (g *rig) folder(w *worker.Worker, key keyring.Key) {
	g.t.Helper()
	store, err := stage.Open(stage.Config{Dir: g.at("workers")})
	g.must(err)
	defer store.Close()
	s, err := store.New(w.Serial)
	g.must(err)
	host, own := stage.Access{GID: w.UID}, stage.Access{UID: w.UID, GID: w.UID}
	mode := func(a stage.Access, mode os.FileMode) stage.Access { a.Mode = mode; return a }
	for dir, a := range map[string]stage.Access{".": mode(host, 0o750), "certs": mode(host, 0o750), "state": mode(own, 0o700), "run": mode(own, 0o700), "logs": {Mode: 0o700}} {
		g.must(s.Mkdir(dir, a))
	}
	pem, err := identity.MarshalKey(key.Private())
	g.must(err)
	g.must(s.WriteFile("certs/worker.key", pem, mode(own, 0o600)))
	g.must(s.WriteFile("config.json", w.Config, mode(host, 0o440)))
	if checkpoint, _ := g.log.Checkpoint(); len(checkpoint) > 0 {
		block, _, err := vault.Seed(g.keys.HostID(), string(w.Serial), checkpoint, w.CreatedAt)
		g.must(err)
		g.must(s.Mkdir("vault", mode(host, 0o750)))
		g.must(s.WriteFile(vault.AccountabilityFile, block, mode(host, 0o440)))
	}
	files, err := manifest.Scan(s.Root())
	g.must(err)
	text, err := (&manifest.Manifest{
		Format: manifest.Format, ForgeVersion: worker.ForgeVersion, WorkerName: w.Name, WorkerType: w.Type, TypeVersion: w.TypeVersion,
		WorkerSerial: string(w.Serial), ModelNumber: string(w.Model), LedgerCode: string(w.LedgerCode), ClassCode: string(w.ClassCode), Port: w.Port,
		PluginDigest: w.PluginDigest, PublicKey: w.PublicKey, Glyph: w.Glyph, HostID: g.keys.HostID(), CreatedAt: w.CreatedAt, Files: files,
	}).Encode()
	g.must(err)
	sum := sha256.Sum256(text)
	w.ManifestSHA256 = hex.EncodeToString(sum[:])
	g.must(s.WriteFile(manifest.File, text, mode(host, manifest.FileMode)))
	g.must(s.WriteFile(manifest.SignatureFile, manifest.Sign(g.keys.Manifest().Private(), text), mode(host, manifest.FileMode)))
	g.must(s.Promote())
	g.must(s.Sync())
}

// turn turns a worker's state and tells of it.
func (g *rig) turn(w worker.Worker, kind record.Kind, state worker.State, reason string) {
	g.t.Helper()
	at := now()
	g.note(record.Entry{At: at, Kind: kind, Worker: record.NameOf(w), Reason: reason}, func(tx *registry.Tx) error {
		row, err := tx.Worker(w.Serial)
		if err != nil {
			return err
		}
		row.State, row.StateReason = state, reason
		if kind == record.WorkerRestarted {
			row.Restarts++
		}
		if state == worker.StateRetired {
			row.RetiredAt = at
		}
		return tx.UpdateWorker(row)
	})
}

func (g *rig) root(serial worker.Serial) (*os.Root, error) {
	return os.OpenRoot(g.at("workers/instances/" + string(serial)))
}

func (g *rig) source(passphrase string) Source {
	return Source{
		DataDir: g.dir, KeysDir: g.at("keys"), Version: "test", Registry: g.registry, Keys: g.keys, Checkpoint: g.log.Checkpoint,
		Worker: g.root, Binary: g.store, Passphrase: passphrase, workFactor: 2,
	}
}

func (g *rig) backup(passphrase string) ([]byte, *Header) {
	g.t.Helper()
	g.publish()
	var b bytes.Buffer
	h, err := Backup(g.t.Context(), g.source(passphrase), &b)
	g.must(err)
	if left, _ := filepath.Glob(g.at(".backup-*")); len(left) > 0 {
		g.t.Errorf("left by the backup: %v", left)
	}
	return b.Bytes(), h
}

// restore restores a backup into dir.
func restore(t testing.TB, data []byte, dir string, change func(*RestoreConfig)) (*Restored, error) {
	t.Helper()
	c := RestoreConfig{
		File: bytes.NewReader(data), DataDir: dir, Passphrase: passphrase, Logger: hclog.NewNullLogger(), UIDs: func(string) UIDs { return rangeHere() },
	}
	if change != nil {
		change(&c)
	}
	return Restore(t.Context(), c)
}

func rangeHere() UIDs {
	if os.Geteuid() == 0 {
		return testUIDs
	}
	return UIDs{}
}

// recover recovers the rig's folder, whose registry is closed.
func (g *rig) recover(change func(*RecoverConfig)) (*Recovered, error) {
	g.t.Helper()
	c := RecoverConfig{
		Registry: g.at("registry.db"), Record: g.at("record"), Workers: g.at("workers"), Keys: g.keys, UIDs: rangeHere(), Binary: g.store,
		Created: func(context.Context, []worker.Worker) ([]launch.Status, error) { return nil, nil }, Logger: hclog.NewNullLogger(),
	}
	if change != nil {
		change(&c)
	}
	return Recover(g.t.Context(), c)
}

// contents maps every path below dir to its mode and, for files, what is in it.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		found[name] = info.Mode().String()
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found[name] += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func verifierOf(t testing.TB, keys *keyring.Keyring) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(keys.CheckpointKey())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
