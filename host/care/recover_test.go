package care

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
)

// tables is what a registry knows, as far as a recovery brings it back.
type tables struct {
	Workers     []worker.Worker
	Clients     []registry.Client
	Descriptors []registry.Descriptor
	Types       []registry.Type
	Quarantines []registry.Quarantine
	Deliveries  []registry.Delivery
	Operator    string
}

func read(t *testing.T, r *registry.Registry) (x tables) {
	t.Helper()
	var errs [7]error
	x.Workers, errs[0] = r.Workers(t.Context(), registry.Filter{IncludeRetired: true})
	x.Clients, errs[1] = r.Clients(t.Context())
	x.Descriptors, errs[2] = r.Descriptors(t.Context())
	x.Types, errs[3] = r.Types(t.Context())
	x.Quarantines, errs[4] = r.Quarantines(t.Context())
	x.Deliveries, errs[5] = r.Deliveries(t.Context(), "")
	x.Operator, errs[6] = r.Meta(t.Context(), MetaOperator)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return x
}

// fill has something happen of each kind that leaves a trace in the registry.
func (g *rig) fill() {
	g.t.Helper()
	at := now()
	long := bytes.Repeat([]byte("descriptor "), 2*record.MaxDescriptorPart/11)
	for _, d := range []registry.Descriptor{
		{Digest: g.digest, Type: "template", Version: "1.2.3", Descriptor: []byte("short"), ProbedAt: at},
		{Digest: "bb", Type: "ledger", Version: "2.0.0", Descriptor: long, ProbedAt: at},
	} {
		rest := d.Descriptor
		for len(rest) > record.MaxDescriptorPart {
			g.note(record.Entry{At: at, Kind: record.PluginDescribed, Plugin: &record.PluginFields{Digest: d.Digest, Descriptor: rest[:record.MaxDescriptorPart]}}, nil)
			rest = rest[record.MaxDescriptorPart:]
		}
		p := record.PluginFields{Digest: d.Digest, Type: d.Type, Version: d.Version, OwnerUID: 17, Descriptor: rest}
		g.note(record.Entry{At: at, Kind: record.PluginRegistered, Plugin: &p}, func(tx *registry.Tx) error {
			return errors.Join(tx.PutDescriptor(d), tx.PutType(registry.Type{Name: d.Type, Version: d.Version, Digest: d.Digest, OwnerUID: 17, RegisteredAt: at}))
		})
	}
	g.note(record.Entry{At: at, Kind: record.PluginQuarantined, Plugin: &record.PluginFields{Digest: "cc", Fix: "build it"}, Reason: "no ELF"}, func(tx *registry.Tx) error {
		return tx.PutQuarantine(registry.Quarantine{Digest: "cc", Reason: "no ELF", Fix: "build it", At: at})
	})
	ci := registry.Client{ID: envelope.ClientID(bytes.Repeat([]byte{7}, 32)), Name: "ci", PublicKey: bytes.Repeat([]byte{7}, 32), CreatedAt: at}
	g.client(record.ClientAdded, ci)
	g.client(record.ClientRevoked, ci)
	again := registry.Client{ID: envelope.ClientID(bytes.Repeat([]byte{8}, 32)), Name: "ci", PublicKey: bytes.Repeat([]byte{8}, 32), CreatedAt: at.Add(time.Second)}
	g.client(record.ClientAdded, again)

	nora, otto, lost, failed, stopped, back := g.forge("nora"), g.forge("otto"), g.forge("lost"), g.forge("failed"), g.forge("stopped"), g.forge("back")
	g.turn(otto, record.Retire, worker.StateRetired, "")
	g.must(os.RemoveAll(g.at("workers/instances/" + string(otto.Serial))))
	g.turn(lost, record.WorkerLost, worker.StateRestarting, "no sign of life")
	g.turn(failed, record.WorkerFailed, worker.StateFailed, "10 restarts")
	g.turn(stopped, record.WorkerStopped, worker.StateStopped, "")
	g.turn(back, record.WorkerLost, worker.StateRestarting, "exit code 1")
	g.turn(back, record.WorkerRestarted, worker.StateLive, "")
	g.void("A1")
	g.upgrade(back)

	for i, answered := range []bool{false, true} {
		g.deliver(nora, fmt.Sprintf("0192-%d", i), answered)
	}
	g.note(record.Entry{Kind: record.HostStarted, Reason: "version test"}, nil)
	g.note(record.Entry{Kind: record.Refused, Refusal: &record.RefusalFields{Code: "kind_unknown"}}, nil)
	g.note(record.Entry{Kind: record.RefusedSummary, Refusal: &record.RefusalFields{Code: "bad_proof", Peer: "uid 0", Count: 3}}, nil)
}

// upgrade makes a worker's folder and row anew, and its entry tells all of it.
func (g *rig) upgrade(w worker.Worker) {
	g.t.Helper()
	w, err := g.registry.Worker(g.t.Context(), w.Serial)
	g.must(err)
	key, err := keyring.NewWorkerKey()
	g.must(err)
	g.must(os.RemoveAll(g.at("workers/instances/" + string(w.Serial))))
	w.TypeVersion, w.Config, w.RequestSHA256 = "1.3.0", []byte(`{"new":true}`), "ee"
	w.PublicKey, w.Glyph = key.Public(), identity.Glyph(key.Public())
	g.folder(&w, key)
	g.note(record.Entry{Kind: record.Upgrade, Worker: record.FieldsOf(w)}, func(tx *registry.Tx) error { return tx.UpdateWorker(w) })
}

// void gives a ledger code and a serial that no worker gets.
func (g *rig) void(class worker.ClassCode) {
	g.t.Helper()
	var w worker.Worker
	g.update(func(tx *registry.Tx) (err error) {
		if w.Serial, err = tx.AllocateSerial("DMN-TP-1"); err != nil {
			return err
		}
		w.LedgerCode, err = tx.AllocateLedgerCode(class)
		return err
	})
	g.note(record.Entry{Kind: record.Void, Worker: record.NameOf(w), Reason: "a step failed"}, nil)
}

// deliver admits an envelope, and answers it.
func (g *rig) deliver(w worker.Worker, id string, answered bool) {
	g.t.Helper()
	at := now()
	d := registry.Delivery{EnvelopeID: id, Sender: "key:x", Serial: w.Serial, Attempt: 1, Header: []byte("header"), AdmittedAt: at, Deadline: at.Add(time.Minute)}
	fields := record.EnvelopeFields{ID: id, Sender: d.Sender, WorkerSerial: string(w.Serial), Attempt: 1, Header: d.Header, Deadline: d.Deadline}
	size, err := g.registry.Size(g.t.Context())
	g.must(err)
	d.LogIndex = size
	g.note(record.Entry{At: at, Kind: record.Admitted, Envelope: &fields}, func(tx *registry.Tx) error { return tx.PutDelivery(d) })
	if answered {
		result := record.EnvelopeFields{InReplyTo: id, WorkerSerial: string(w.Serial), Attempt: 1, AdmittedIndex: &d.LogIndex, Status: "ok"}
		g.note(record.Entry{Kind: record.Result, Envelope: &result}, func(tx *registry.Tx) error {
			_, err := tx.TakeDelivery(id, w.Serial, 1)
			return err
		})
	}
}

// damages are what can happen to a registry's file.
var damages = map[string]func(data []byte) []byte{
	"lost":      nil,
	"empty":     func([]byte) []byte { return nil },
	"garbage":   func([]byte) []byte { return bytes.Repeat([]byte("no database "), 999) },
	"truncated": func(b []byte) []byte { return b[:len(b)/2] },
	"odd end":   func(b []byte) []byte { return b[:len(b)-1000] },
	"a page":    func(b []byte) []byte { copy(b[8192:12288], bytes.Repeat([]byte{0xa5}, 4096)); return b },
	"header":    func(b []byte) []byte { b[3] ^= 1; return b },
}

func (g *rig) damage(t *testing.T, how func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(g.at("registry.db"))
	g.must(err)
	if how == nil {
		g.must(os.Remove(g.at("registry.db")))
		return
	}
	g.must(os.WriteFile(g.at("registry.db"), how(data), 0o600))
}

// Whatever happened to the file, all rows come back, and the numbers go on.
func TestRecoverBringsAllRowsBack(t *testing.T) {
	t.Parallel()
	filled := newRig(t)
	filled.fill()
	want := read(t, filled.registry)
	size, err := filled.registry.Size(t.Context())
	filled.must(err)
	filled.close()
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := filled.copy(t)
			g.damage(t, how)
			damaged, _ := os.ReadFile(g.at("registry.db"))

			found, err := g.recover(nil)
			g.must(err)
			if !found.Rebuilt || found.Entries != size || len(found.Notes) > 0 || found.NeedsAttention() {
				t.Errorf("found %+v", found)
			}
			r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
			g.must(err)
			defer r.Close()
			if diff := cmp.Diff(want, read(t, r)); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			verify(t, g.dir, g.keys, r)
			if last := lastEntry(t, r); last.Kind != record.Recovered || last.Recovery.Jump != jump {
				t.Errorf("last entry %+v", last)
			}
			g.must(r.Update(t.Context(), func(tx *registry.Tx) error {
				serial, err := tx.AllocateSerial("DMN-TP-1")
				code, err2 := tx.AllocateLedgerCode("A1")
				if want := worker.Serial("03ef"); !strings.HasSuffix(string(serial), string(want)) || code != "A1-001008" {
					t.Errorf("next are %s and %s", serial, code)
				}
				_, err3 := tx.RevokeClient("operator", time.Now())
				return errors.Join(err, err2, err3)
			}))
			kept, err := filepath.Glob(g.at("registry.db.corrupt-*Z"))
			g.must(err)
			if how != nil {
				if len(kept) != 1 {
					t.Fatalf("kept %v", kept)
				}
				if old, _ := os.ReadFile(kept[0]); !bytes.Equal(old, damaged) {
					t.Error("the old registry is not what it was")
				}
			}
		})
	}
}

// A registry that was rolled back is behind its record.
func TestRecoverRolledBack(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.fill()
	g.publish()
	g.must(g.registry.Snapshot(t.Context(), g.at("old.db")))
	g.forge("later")
	want := read(t, g.registry)
	g.close()
	g.must(os.Rename(g.at("old.db"), g.at("registry.db")))
	found, err := g.recover(nil)
	g.must(err)
	if !found.Rebuilt || !strings.Contains(found.Why, "the checkpoint covers") {
		t.Errorf("found %+v", found)
	}
	r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
	g.must(err)
	defer r.Close()
	if diff := cmp.Diff(want, read(t, r)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// A sound registry is left alone.
func TestRecoverOfASoundRegistry(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.fill()
	g.close()
	before := contents(t, g.dir)
	found, err := g.recover(nil)
	g.must(err)
	if found.Rebuilt || found.NeedsAttention() || found.Workers != 5 || found.Clients != 2 || found.Types != 2 {
		t.Errorf("found %+v", found)
	}
	after := contents(t, g.dir)
	for _, all := range []map[string]string{before, after} {
		delete(all, "registry.db-shm")
		delete(all, "registry.db-wal")
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
}

// Recovering twice, with something given and lost in between, gives nothing
// twice: what an earlier recovery left out stays left out.
func TestRecoverAgain(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	g.close()
	codes := map[worker.LedgerCode]bool{}
	for range 3 {
		g.damage(t, nil)
		if _, err := g.recover(nil); err != nil {
			t.Fatal(err)
		}
		r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
		g.must(err)
		for _, class := range []worker.ClassCode{"A1", "B2"} {
			g.must(r.Update(t.Context(), func(tx *registry.Tx) error { // given, and never recorded
				code, err := tx.AllocateLedgerCode(class)
				if codes[code] {
					t.Errorf("%s was given twice", code)
				}
				codes[code] = true
				return err
			}))
		}
		g.must(r.Close())
	}
}

// What was forged after the last checkpoint has a folder and no entry: its
// numbers are not given again, and somebody is told.
func TestRecoverSeesUnpublishedWorkers(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	g.publish()
	later := g.forge("later")
	g.must(g.registry.Close())
	g.damage(t, nil)
	found, err := g.recover(nil)
	g.must(err)
	if !found.NeedsAttention() || len(found.Differences) != 2 {
		t.Errorf("differences %+v", found.Differences)
	}
	if i := slices.IndexFunc(found.Differences, func(d Difference) bool { return d.WorkerSerial == later.Serial }); i < 0 || !found.Differences[i].Look || found.Differences[i].WorkerName != "later" {
		t.Errorf("the folder is not told of: %+v", found.Differences)
	}
	r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
	g.must(err)
	defer r.Close()
	g.must(r.Update(t.Context(), func(tx *registry.Tx) error {
		code, err := tx.AllocateLedgerCode("A1")
		if code != "A1-001003" {
			t.Errorf("next is %s", code)
		}
		if os.Geteuid() == 0 {
			for range 10 {
				uid, err := tx.AllocateUID(testUIDs.Low, testUIDs.High)
				if uid == later.UID || err != nil {
					t.Errorf("uid %d is given again, %v", uid, err)
				}
			}
		}
		return err
	}))
}

// Every difference between rows, folders and launcher is told.
func TestRecoverComparesAll(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	names := []string{"changed", "gone", "extra", "link", "mode", "retired", "failed", "dir", "fine"}
	w := map[string]worker.Worker{}
	for _, name := range names {
		w[name] = g.forge(name)
	}
	dir := func(name string) string { return g.at("workers/instances/" + string(w[name].Serial)) }
	g.must(os.WriteFile(dir("changed")+"/config.json", []byte("x"), 0o440))
	g.must(os.RemoveAll(dir("gone")))
	g.must(os.WriteFile(dir("extra")+"/more", nil, 0o440))
	g.must(os.Remove(dir("link") + "/config.json"))
	g.must(os.Symlink("/etc/passwd", dir("link")+"/config.json"))
	g.must(os.Chmod(dir("mode")+"/config.json", 0o444))
	g.turn(w["retired"], record.Retire, worker.StateRetired, "")
	g.turn(w["failed"], record.WorkerFailed, worker.StateFailed, "why")
	g.must(os.RemoveAll(dir("dir")))
	g.must(os.WriteFile(dir("dir"), []byte("a file"), 0o600))
	g.must(os.Mkdir(g.at("workers/.stage/DMN-TP-1-deadbeef-00000"), 0o700))
	g.close()
	g.damage(t, damages["truncated"])
	found, err := g.recover(func(c *RecoverConfig) {
		c.Created = func(context.Context, []worker.Worker) ([]launch.Status, error) {
			return []launch.Status{
				{Serial: w["fine"].Serial, Running: true, PID: 1, Image: launch.Image{Digest: w["fine"].PluginDigest, Type: "template", Version: "1.2.3"}},
				{Serial: w["extra"].Serial, Running: true, PID: 4, Image: launch.Image{Digest: "0123", Type: "template", Version: "1.2.4"}},
				{Serial: w["failed"].Serial, Running: true, PID: 2},
				{Serial: w["retired"].Serial},
				{Serial: "DMN-TP-1-0badcafe-00000", Running: true, PID: 3},
			}, nil
		}
	})
	g.must(err)
	if !found.NeedsAttention() {
		t.Error("nobody has to look")
	}
	for _, want := range []struct {
		name, what string
		look       bool
	}{
		{"changed", "config.json: sha256 changed", true},
		{"gone", "has no folder", true},
		{"extra", "more: not in the manifest", true},
		{"link", "config.json: is a symlink", true},
		{"mode", "config.json: mode 0444, want 0440", true},
		{"retired", "its folder is still there", true},
		{"retired", "the launcher has it, and it is retired", true},
		{"failed", "it runs (pid 2), and it is failed", false},
		{"dir", "cannot be read", true},
		{"changed", "the launcher does not have it", false},
		{"extra", `it runs (pid 4), labelled with type version "1.2.4"; the record says "1.2.3"`, true},
		{"extra", `it runs (pid 4), labelled with binary "0123"`, true},
		{"", "it runs (pid 3), and the record does not tell of it", true},
		{"", "left a stage", false},
	} {
		if !slices.ContainsFunc(found.Differences, func(d Difference) bool {
			return d.WorkerName == want.name && strings.Contains(d.What, want.what) && d.Look == want.look
		}) {
			t.Errorf("not told: %+v", want)
		}
	}
	for _, d := range found.Differences {
		if d.WorkerName == "fine" {
			t.Errorf("a worker that is fine: %+v", d)
		}
	}
	t.Logf("%+v", found.Differences)
	found, err = g.recover(func(c *RecoverConfig) {
		c.Created = func(context.Context, []worker.Worker) ([]launch.Status, error) {
			return nil, errors.New("no containerd")
		}
	})
	g.must(err)
	if !slices.ContainsFunc(found.Differences, func(d Difference) bool { return d.Look && strings.Contains(d.What, "no containerd") }) {
		t.Errorf("a launcher that is away is not told: %+v", found.Differences)
	}
}

// A record that is damaged too: nothing without being asked for it, and then
// what is sound.
func TestRecoverOfADamagedRecord(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	size, err := g.registry.Size(t.Context())
	g.must(err)
	for i := range 300 {
		g.note(record.Entry{Kind: record.Refused, Refusal: &record.RefusalFields{Code: "kind_unknown", Reason: fmt.Sprint(i)}}, nil)
	}
	g.forge("late")
	g.close()
	g.damage(t, damages["garbage"])
	last, err := filepath.Glob(g.at("record/tile/entries/001.p/*"))
	g.must(err)
	data, err := os.ReadFile(last[0])
	g.must(err)
	data[len(data)-100] ^= 1 // in the entry of late
	g.must(os.WriteFile(last[0], data, 0o600))

	before := contents(t, g.dir)
	_, err = g.recover(nil)
	if !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprintf("of its %d entries the first %d can be used", size+301, size+300)) ||
		!strings.Contains(worker.HintOf(err), "--accept-loss") {
		t.Fatalf("%v, hint %q", err, worker.HintOf(err))
	}
	after := contents(t, g.dir)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
	found, err := g.recover(func(c *RecoverConfig) { c.AcceptLoss = true })
	g.must(err)
	if found.Entries != size+300 || found.Published != size+301 || !found.NeedsAttention() {
		t.Errorf("found %+v", found)
	}
	r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
	g.must(err)
	defer r.Close()
	verify(t, g.dir, g.keys, r)
	if last := lastEntry(t, r); last.Recovery == nil || last.Recovery.Lost != 1 {
		t.Errorf("last entry %+v", last)
	}
	if _, err := r.WorkerByName(t.Context(), "nora"); err != nil {
		t.Error(err)
	}
	if kept, _ := filepath.Glob(g.at("record.damaged-*/checkpoint")); len(kept) != 1 {
		t.Errorf("the damaged record was not kept: %v", kept)
	}
}

// A record whose tiles are damaged and whose entries are not loses nothing, and
// is whole again.
func TestRecoverMendsTiles(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.fill()
	g.close()
	g.damage(t, nil)
	tiles, err := filepath.Glob(g.at("record/tile/0/000.p/*"))
	g.must(err)
	g.must(os.Remove(tiles[0]))
	found, err := g.recover(nil)
	g.must(err)
	if len(found.Damage) != 1 || found.Entries != found.Published {
		t.Errorf("found %+v", found)
	}
	r, err := registry.Open(t.Context(), registry.Config{Path: g.at("registry.db")})
	g.must(err)
	defer r.Close()
	verify(t, g.dir, g.keys, r)
}

func TestRecoverWithoutACheckpoint(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.close()
	g.must(os.Remove(g.at("record/checkpoint")))
	if _, err := g.recover(nil); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(worker.HintOf(err), "restore") {
		t.Errorf("%v, hint %q", err, worker.HintOf(err))
	}
	g.damage(t, nil)
	if _, err := g.recover(nil); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(worker.HintOf(err), "restore") {
		t.Errorf("%v, hint %q", err, worker.HintOf(err))
	}
	if _, err := os.Stat(g.at("registry.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a registry was made of nothing")
	}
}

// Replay knows every kind that there is.
func TestReplayKnowsEveryKind(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../record/entry.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`(?m)^\t\w+ +Kind = "(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(kinds) < 18 {
		t.Fatalf("%d kinds found", len(kinds))
	}
	g := newRig(t)
	y := &replay{parts: map[string][]byte{}}
	for _, kind := range kinds {
		err := g.registry.Update(t.Context(), func(tx *registry.Tx) error {
			return y.follow(tx, 0, record.Entry{
				Kind: record.Kind(kind[1]), Worker: &record.WorkerFields{Serial: "DMN-TP-1-deadbeef-00000"}, Client: &record.ClientFields{},
				Envelope: &record.EnvelopeFields{}, Plugin: &record.PluginFields{}, Recovery: &record.RecoveryFields{},
			})
		})
		if err != nil && strings.Contains(err.Error(), "is not known to recover") {
			t.Error(err)
		}
	}
}
