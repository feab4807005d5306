package care

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/proof"
)

// empty is a folder such as the caller of Restore has locked.
func empty(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "host.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A restored folder is the one that was backed up, but for what is not in it.
func TestRestoreBringsBack(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	nora, otto, dora := g.forge("nora"), g.forge("otto"), g.forge("dora")
	g.turn(otto, record.Retire, worker.StateRetired, "")
	g.must(os.RemoveAll(g.at("workers/instances/" + string(otto.Serial))))
	g.turn(dora, record.WorkerStopped, worker.StateStopped, "")
	g.must(os.WriteFile(g.at("workers/instances/"+string(nora.Serial)+"/state/secret"), []byte("its own"), 0o600))
	data, h := g.backup(passphrase)
	if h.Workers != 2 || len(h.Missing) > 0 || !h.Keys || h.HostID != g.keys.HostID() || h.CheckpointSize != h.Entries {
		t.Errorf("header %+v", h)
	}
	if bytes.Contains(data, []byte("its own")) || bytes.Contains(data, []byte("PRIVATE KEY")) {
		t.Error("state or keys are in the backup in clear")
	}

	dir := empty(t)
	restored, err := restore(t, data, dir, nil)
	g.must(err)
	if restored.Workers != 2 || len(restored.Failed) > 0 || restored.Entries != h.Entries {
		t.Errorf("restored %+v", restored)
	}
	g.must(os.Remove(g.at("workers/instances/" + string(nora.Serial) + "/state/secret")))
	want, got := contents(t, g.dir), contents(t, dir)
	for _, all := range []map[string]string{want, got} {
		for name := range all {
			if strings.HasPrefix(name, "registry.db") || strings.HasPrefix(name, "record") || name == "store" || name == "store/sha256" {
				delete(all, name) // compared below, or with other modes in the rig
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("folder (-want +got):\n%s", diff)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	r, err := registry.OpenReadOnly(t.Context(), filepath.Join(dir, "registry.db"))
	g.must(err)
	defer r.Close()
	was, err := g.registry.Workers(t.Context(), registry.Filter{IncludeRetired: true})
	g.must(err)
	is, err := r.Workers(t.Context(), registry.Filter{IncludeRetired: true})
	g.must(err)
	if diff := cmp.Diff(was, is); diff != "" {
		t.Errorf("workers (-want +got):\n%s", diff)
	}
	verify(t, dir, g.keys, r)
	if last := lastEntry(t, r); last.Kind != record.Recovered || last.Recovery.From != "backup" || last.Recovery.NotBefore.IsZero() {
		t.Errorf("last entry %+v", last)
	}
}

// verify checks the record of a data folder.
func verify(t *testing.T, dir string, keys *keyring.Keyring, r *registry.Registry) {
	t.Helper()
	report, err := record.Verify(t.Context(), filepath.Join(dir, "record"), rows{r}, verifierOf(t, keys))
	if err != nil || len(report.Problems) > 0 || report.Unpublished > 0 {
		t.Errorf("record: %+v, %v", report, err)
	}
}

func lastEntry(t *testing.T, r *registry.Registry) (last record.Entry) {
	t.Helper()
	for g, err := range r.Groups(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if last, err = record.Decode(g.Entries[len(g.Entries)-1]); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

// What was given before the restore, and after the backup, is not given again.
func TestRestoreLeavesNumbersOut(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	data, _ := g.backup(passphrase)
	later := g.forge("later")
	dir := empty(t)
	_, err := restore(t, data, dir, nil)
	g.must(err)
	r, err := registry.Open(t.Context(), registry.Config{Path: filepath.Join(dir, "registry.db")})
	g.must(err)
	defer r.Close()
	g.must(r.Update(t.Context(), func(tx *registry.Tx) error {
		serial, err := tx.AllocateSerial("DMN-TP-1")
		code, err2 := tx.AllocateLedgerCode("A1")
		fresh, err3 := tx.AllocateLedgerCode("Z9")
		if serial <= later.Serial || code != "A1-001002" || fresh != "Z9-001001" {
			t.Errorf("next are %s (%s was given), %s and %s", serial, later.Serial, code, fresh)
		}
		return errors.Join(err, err2, err3)
	}))
	if _, err := r.Meta(t.Context(), MetaNotBefore); err != nil {
		t.Error(err)
	}
}

func TestRestoreWithoutKeys(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	nora := g.forge("nora")
	bare, h := g.backup("")
	if h.Keys {
		t.Error("keys without a passphrase")
	}
	full, _ := g.backup(passphrase)
	dir := empty(t)
	if _, err := restore(t, bare, dir, nil); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("without any keys: %v", err)
	}
	if _, err := restore(t, full, dir, func(c *RestoreConfig) { c.Passphrase = "" }); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("without the passphrase: %v", err)
	}
	if _, err := restore(t, full, dir, func(c *RestoreConfig) { c.Passphrase = "wrong" }); !errors.Is(err, worker.ErrRefused) {
		t.Errorf("wrong passphrase: %v", err)
	}
	for name, data := range map[string][]byte{"bare": bare, "left there": full} {
		dir := empty(t)
		g.must(os.CopyFS(filepath.Join(dir, "keys"), os.DirFS(g.at("keys"))))
		g.must(os.Chmod(filepath.Join(dir, "keys"), 0o700))
		restored, err := restore(t, data, dir, func(c *RestoreConfig) { c.Passphrase, c.WithoutKeys = "", true })
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if restored.Workers != 0 || len(restored.Failed) != 1 || !strings.Contains(restored.Failed[0].Reason, "certs/worker.key: missing") {
			t.Errorf("%s: %+v", name, restored)
		}
		r, err := registry.OpenReadOnly(t.Context(), filepath.Join(dir, "registry.db"))
		g.must(err)
		if w, err := r.Worker(t.Context(), nora.Serial); err != nil || w.State != worker.StateFailed || w.StateReason == "" {
			t.Errorf("%s: %+v, %v", name, w, err)
		}
		verify(t, dir, g.keys, r)
		g.must(r.Close())
	}
	other := newRig(t)
	dir = empty(t)
	g.must(os.CopyFS(filepath.Join(dir, "keys"), os.DirFS(other.at("keys"))))
	if _, err := restore(t, full, dir, nil); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("another host's keys: %v", err)
	}
	if _, err := restore(t, bare, dir, nil); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("another host's keys, none in the backup: %v", err)
	}
}

// One worker's trouble does not keep the others out of a backup.
func TestBackupOfADamagedWorker(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	nora, otto := g.forge("nora"), g.forge("otto")
	g.must(os.Remove(g.at("workers/instances/" + string(nora.Serial) + "/config.json")))
	data, h := g.backup(passphrase)
	if h.Workers != 1 || len(h.Missing) != 1 || h.Missing[0].WorkerSerial != nora.Serial || !strings.Contains(h.Missing[0].Reason, "config.json: missing") {
		t.Fatalf("header %+v", h)
	}
	restored, err := restore(t, data, empty(t), nil)
	g.must(err)
	if restored.Workers != 1 || len(restored.Failed) != 1 || restored.Failed[0].WorkerName != "nora" || !strings.Contains(restored.Failed[0].Reason, "config.json") {
		t.Errorf("restored %+v", restored)
	}
	g.must(os.WriteFile(g.store(g.digest)+".new", []byte("other bytes"), 0o555))
	g.must(os.Rename(g.store(g.digest)+".new", g.store(g.digest)))
	if _, h := g.backup(""); len(h.Missing) != 2 || !slices.ContainsFunc(h.Missing, func(m Missing) bool {
		return m.WorkerSerial == otto.Serial && strings.Contains(m.Reason, "plugin binary")
	}) {
		t.Errorf("with a changed binary: %+v", h.Missing)
	}
}

// A backup while workers come and go is of one moment.
func TestBackupWhileForging(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for i := range 3 {
		g.forge(fmt.Sprint("w", i))
	}
	source := g.source(passphrase)
	i := 0
	source.Worker = func(serial worker.Serial) (*os.Root, error) {
		if i++; i == 2 { // between two workers, one goes and another comes
			w, err := g.registry.WorkerByName(t.Context(), "w2")
			g.must(err)
			g.must(os.RemoveAll(g.at("workers/instances/" + string(w.Serial))))
			g.turn(w, record.Retire, worker.StateRetired, "")
			g.forge("w3")
		}
		return g.root(serial)
	}
	var b bytes.Buffer
	h, err := Backup(t.Context(), source, &b)
	g.must(err)
	if h.Workers != 3 || len(h.Missing) > 0 {
		t.Fatalf("header: %d workers, missing %+v", h.Workers, h.Missing)
	}
	restored, err := restore(t, b.Bytes(), empty(t), nil)
	g.must(err)
	if restored.Workers != 3 || len(restored.Failed) > 0 {
		t.Errorf("restored %+v", restored)
	}
}

// A target that is refused is as it was.
func TestRestoreRefusesTargets(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	data, _ := g.backup(passphrase)
	g.forge("otto")
	g.publish()
	newer, _ := g.log.Checkpoint()
	other := newRig(t)
	other.publish()
	foreign, _ := other.log.Checkpoint()
	for name, c := range map[string]struct {
		prepare func(dir string)
		change  func(*RestoreConfig)
		want    error
	}{
		"a registry": {prepare: func(dir string) { g.must(os.WriteFile(filepath.Join(dir, "registry.db"), []byte("x"), 0o600)) }, want: worker.ErrConflict},
		"workers":    {prepare: func(dir string) { g.must(os.Mkdir(filepath.Join(dir, "workers"), 0o700)) }, want: worker.ErrConflict},
		"a newer record": {prepare: func(dir string) {
			g.must(os.Mkdir(filepath.Join(dir, "record"), 0o700))
			g.must(os.WriteFile(filepath.Join(dir, "record", "checkpoint"), newer, 0o600))
		}, want: worker.ErrRefused},
		"a newer head":      {change: func(c *RestoreConfig) { c.Head = newer }, want: worker.ErrRefused},
		"a foreign head":    {change: func(c *RestoreConfig) { c.Head = foreign }, want: worker.ErrInvalid},
		"a head of rubbish": {change: func(c *RestoreConfig) { c.Head = []byte("x") }, want: worker.ErrInvalid},
		"an empty head":     {change: func(c *RestoreConfig) { c.Head = []byte{} }, want: worker.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			dir := empty(t)
			if c.prepare != nil {
				c.prepare(dir)
			}
			before := contents(t, filepath.Dir(dir))
			if _, err := restore(t, data, dir, c.change); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if diff := cmp.Diff(before, contents(t, filepath.Dir(dir))); diff != "" {
				t.Errorf("the target changed:\n%s", diff)
			}
		})
	}
	// The backup's own head, and older ones, are no reason.
	again, _ := g.backup(passphrase)
	dir := empty(t)
	g.must(os.Mkdir(filepath.Join(dir, "record"), 0o700))
	g.must(os.WriteFile(filepath.Join(dir, "record", "checkpoint"), newer, 0o600))
	if _, err := restore(t, again, dir, func(c *RestoreConfig) { c.Head = newer }); err != nil {
		t.Error(err)
	}
}

// A fork: a checkpoint of as many entries, but of others.
func TestRestoreRefusesAFork(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	data, _ := g.backup(passphrase)
	dir := empty(t)
	_, err := restore(t, data, dir, nil)
	g.must(err)
	forked, err := os.ReadFile(filepath.Join(dir, "record", "checkpoint"))
	g.must(err)
	g.forge("otto")
	data, _ = g.backup(passphrase)
	if _, err := restore(t, data, empty(t), func(c *RestoreConfig) { c.Head = forked }); !errors.Is(err, worker.ErrRefused) {
		t.Errorf("%v", err)
	}
}

// A registry that does not support its own checkpoint is refused, though its
// host signed it so.
func TestRestoreRefusesAnUnsupportedHead(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	source := g.source(passphrase)
	g.publish()
	other := newRig(t)
	source.Registry = other.registry
	source.Worker = other.root
	var b bytes.Buffer
	_, err := Backup(t.Context(), source, &b)
	g.must(err)
	if _, err := restore(t, b.Bytes(), empty(t), nil); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), "does not support its own vault head") {
		t.Errorf("%v", err)
	}
}

// Any changed byte, anywhere, is refused, and so is any missing end.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	data, h := g.backup(passphrase)
	if _, err := Inspect(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	named := map[string]int{}
	for at := range data {
		if at > 1024 && at < len(data)-2048 && rand.IntN(24) > 0 { // all of the ends, a part of the middle
			continue
		}
		damaged := bytes.Clone(data)
		damaged[at] ^= byte(1 << rand.IntN(8))
		_, err := Inspect(bytes.NewReader(damaged))
		if err == nil {
			t.Fatalf("byte %d of %d changed unseen", at, len(data))
		}
		for _, p := range append(h.Parts, Part{Name: partHeader}, Part{Name: partSignature}, Part{Name: partSeal}) {
			if strings.Contains(err.Error(), p.Name+": ") {
				named[p.Name]++
			}
		}
	}
	// The signature itself is for Restore to check; the seal has it too.
	for _, name := range []string{partHeader, partRegistry, partKeys, partCheckpoint, partSeal} {
		if named[name] == 0 {
			t.Errorf("%s was never named: %v", name, named)
		}
	}
	for range 300 {
		if _, err := Inspect(bytes.NewReader(data[:rand.IntN(len(data))])); err == nil {
			t.Fatal("a file that was cut short is taken for whole")
		}
	}
	for _, more := range []string{"\x00", "x", strings.Repeat("\x00", 512)} {
		if _, err := Inspect(strings.NewReader(string(data) + more)); err == nil {
			t.Error("more than a backup is taken for one")
		}
	}
	dir := empty(t)
	before := contents(t, filepath.Dir(dir))
	for range 10 {
		damaged := bytes.Clone(data)
		damaged[rand.IntN(len(data))] ^= 1
		if _, err := restore(t, damaged, dir, nil); err == nil {
			t.Fatal("a damaged backup was restored")
		}
	}
	if diff := cmp.Diff(before, contents(t, filepath.Dir(dir))); diff != "" {
		t.Errorf("the target changed:\n%s", diff)
	}
}

// Who can seal a backup cannot sign one.
func TestRestoreWantsTheHostsSignature(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	data, _ := g.backup(passphrase)
	forged := rewrite(t, data, func(h *Header) { h.Entries = 1 }, nil)
	if _, err := Inspect(bytes.NewReader(forged)); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(t, forged, empty(t), nil); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), partSignature) {
		t.Errorf("%v", err)
	}
	// Signed by the host, it would pass: it is the signature that was missing.
	signed := rewrite(t, data, func(h *Header) { h.HostVersion = "another" }, g.keys)
	if _, err := restore(t, signed, empty(t), nil); err != nil {
		t.Error(err)
	}
}

// rewrite changes the header of a backup and seals it again; with keys it is
// signed again too.
func rewrite(t *testing.T, data []byte, change func(*Header), keys *keyring.Keyring) []byte {
	t.Helper()
	parts := map[string][]byte{}
	h, _, signature, err := readArchive(bytes.NewReader(data), func(_ *Header, p Part, r io.Reader) (err error) {
		parts[p.Name], err = io.ReadAll(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	change(h)
	encoded, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	if keys != nil {
		signature = proof.Sign(proof.Backup, keys.Manifest().Private(), encoded)
	}
	var b bytes.Buffer
	a := newArchiveWriter(&b, h.CreatedAt)
	add := func(name string, data []byte) {
		if err := a.add(name, int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	add(partHeader, encoded)
	add(partSignature, signature)
	for _, p := range h.Parts {
		add(p.Name, parts[p.Name])
	}
	if err := a.seal(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Names that lead out of the folder, links and devices never get past the
// header or the reader.
func TestArchiveRefusesHostileParts(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "/etc/passwd", "../x", "workers/../x", "workers/DMN-TP-1-deadbeef-00000", "workers/DMN-TP-1-deadbeef-00000/", "workers/DMN-TP-1-deadbeef-00000/../../x",
		"workers/DMN-TP-1-deadbeef-00000//x", "workers/DMN-TP-1-deadbeef-00000/a/./b", "workers/DMN-TP-1-deadbeef-00000/a\\b", "workers/DMN-TP-1-deadbeef-00000/a\x00b",
		"workers/x/y", "store/x.gz", "store/../" + strings.Repeat("a", 64) + ".gz", "store/" + strings.Repeat("A", 64) + ".gz", "keys/host.seed", "registry.db", "seal", "backup.json",
	} {
		if isPart(name) {
			t.Errorf("%q is taken for a part", name)
		}
	}
	for _, name := range []string{"checkpoint", "registry.db.gz", "keys.age", "store/" + strings.Repeat("a", 64) + ".gz", "workers/DMN-TP-1-deadbeef-00000/certs/ca.pem"} {
		if !isPart(name) {
			t.Errorf("%q is taken for none", name)
		}
	}
	g := newRig(t)
	data, _ := g.backup("")
	for _, kind := range []byte{tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeDir, tar.TypeCont} {
		hostile := retype(t, data, partCheckpoint, kind)
		if _, err := Inspect(bytes.NewReader(hostile)); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), partCheckpoint) {
			t.Errorf("type %q: %v", kind, err)
		}
	}
}

// retype makes one part of an archive another kind of thing.
func retype(t *testing.T, data []byte, name string, kind byte) []byte {
	t.Helper()
	var b bytes.Buffer
	in, out := tar.NewReader(bytes.NewReader(data)), tar.NewWriter(&b)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == name {
			h.Typeflag, h.Linkname, h.Size, body = kind, "/etc/passwd", 0, nil
		}
		if err := out.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	want := secrets{"keys/host.seed": []byte("seed"), "workers/DMN-TP-1-deadbeef-00000/certs/worker.key": []byte("key")}
	sealed, err := want.seal(passphrase, 2)
	if err != nil {
		t.Fatal(err)
	}
	got, err := openSecrets(bytes.NewReader(sealed), passphrase)
	if err != nil || !maps.EqualFunc(want, got, bytes.Equal) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := openSecrets(bytes.NewReader(sealed), "another"); !errors.Is(err, worker.ErrRefused) {
		t.Errorf("another passphrase: %v", err)
	}
	if bytes.Contains(sealed, []byte("seed")) {
		t.Error("not encrypted")
	}
	for _, hostile := range []string{"../x", "keys/../x", "keys/other", "x"} {
		sealed, err := secrets{hostile: nil}.seal(passphrase, 2)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openSecrets(bytes.NewReader(sealed), passphrase); !errors.Is(err, worker.ErrCorrupt) {
			t.Errorf("%q: %v", hostile, err)
		}
	}
}

// FuzzArchive: no bytes make the reader panic, take much memory, or hand out a
// part that a backup cannot have.
func FuzzArchive(f *testing.F) {
	g := newRig(f)
	var b bytes.Buffer
	g.must(g.log.Publish(f.Context()))
	if _, err := Backup(f.Context(), g.source(""), &b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:2000])
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, _, err := readArchive(bytes.NewReader(data), func(_ *Header, p Part, r io.Reader) error {
			if !isPart(p.Name) || strings.Contains(p.Name, "..") || strings.HasPrefix(p.Name, "/") {
				t.Errorf("part %q", p.Name)
			}
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if err == nil && len(data)%512 != 0 {
			t.Error("no tar of whole blocks was taken")
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"format":1,"host_id":"0123456789abcdef","parts":[]}`))
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := decodeHeader(text)
		if err != nil {
			return
		}
		for _, p := range h.Parts {
			if !isPart(p.Name) {
				t.Errorf("part %q", p.Name)
			}
		}
	})
}

func FuzzSecrets(f *testing.F) {
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readSecrets(bytes.NewReader(data))
		for name := range s {
			if err == nil && !isSecret(name) {
				t.Errorf("%q", name)
			}
		}
	})
}
