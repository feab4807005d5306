package forge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/manifest"
)

var digest2 = strings.Repeat("02", 32)

// upgradable is a worker in a state, with something to lose, and another version
// of its type.
func upgradable(t *testing.T, state worker.State) (*rig, worker.Worker) {
	t.Helper()
	r := newRig(t)
	r.others = map[string]string{"2.0.0": digest2}
	r.launcher.says = "line\n"
	w := r.forged()
	if err := os.WriteFile(filepath.Join(r.stage.Dir(w.Serial), "state", "memory"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.become(w, state)
	return r, r.row(w.Serial)
}

// upgradeSteps runs the steps of an upgrade up to the named one.
func (r *rig) upgradeSteps(w worker.Worker, last string) *job {
	r.t.Helper()
	r.others = map[string]string{"2.0.0": digest2}
	j, err := r.forge.upgradeJob(r.t.Context(), r.row(w.Serial), UpgradeRequest{Version: "2.0.0"})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range r.forge.upgradeSteps() {
		if err := s.do(r.t.Context(), j); err != nil {
			r.t.Fatalf("%s: %v", s.name, err)
		}
		if s.name == last {
			break
		}
	}
	return j
}

// isVersion checks that a worker's folder is whole, is of one version, and has
// kept what it had.
func (r *rig) isVersion(was worker.Worker, version string) worker.Worker {
	r.t.Helper()
	w := r.row(was.Serial)
	root, err := r.stage.OpenRoot(w.Serial)
	if err != nil {
		r.t.Fatal(err)
	}
	defer root.Close()
	m, err := manifest.Check(root, r.keys.Manifest().Public())
	if err != nil || m.TypeVersion != version || w.TypeVersion != version || m.PluginDigest != w.PluginDigest || m.ImageDigest != w.ImageDigest {
		r.t.Errorf("manifest %+v, %v; row %+v; want version %s", m, err, w, version)
	}
	if err := isManifestOf(root, w); err != nil {
		r.t.Error(err)
	}
	if memory, err := root.ReadFile("state/memory"); err != nil || string(memory) != "precious" {
		r.t.Errorf("memory %q, %v", memory, err)
	}
	if log, err := root.ReadFile("logs/worker.log"); err != nil || !bytes.HasPrefix(log, []byte("line\n")) {
		r.t.Errorf("log %q, %v", log, err)
	}
	for _, dir := range []string{".stage", ".aside"} {
		if left, err := os.ReadDir(filepath.Join(r.dir, "workers", dir)); err != nil || len(left) != 0 {
			r.t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	r.noJournal(w.Serial)
	if w.Serial != was.Serial || w.Model != was.Model || w.LedgerCode != was.LedgerCode || w.Port != was.Port || w.UID != was.UID ||
		!bytes.Equal(w.PublicKey, was.PublicKey) || w.RequestSHA256 != was.RequestSHA256 || w.Limits != was.Limits || !w.CreatedAt.Equal(was.CreatedAt) {
		r.t.Errorf("was %+v, is %+v", was, w)
	}
	return w
}

// noJournal checks that no upgrade of the worker is open.
func (r *rig) noJournal(s worker.Serial) {
	r.t.Helper()
	if text, err := r.registry.Meta(r.t.Context(), beforeKey(s)); !errors.Is(err, worker.ErrNotFound) {
		r.t.Errorf("the journal of an upgrade was left: %s, %v", text, err)
	}
}

// isBack checks that an upgrade has left no trace in the worker.
func (r *rig) isBack(was worker.Worker) {
	r.t.Helper()
	w := r.isVersion(was, was.TypeVersion)
	if was.State == worker.StateLive {
		r.whole(w)
		if r.launcher.images[w.Serial] != was.PluginDigest {
			r.t.Errorf("%s runs", r.launcher.images[w.Serial])
		}
		return
	}
	if w.State != was.State || w.StateReason != was.StateReason {
		r.t.Errorf("was %s (%s), is %s (%s)", was.State, was.StateReason, w.State, w.StateReason)
	}
	r.atRest(w.Serial)
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateLive, worker.StateRestarting, worker.StateFailed, worker.StateStopped} {
		t.Run(string(state), func(t *testing.T) {
			r, was := upgradable(t, state)
			key, err := os.ReadFile(filepath.Join(r.stage.Dir(was.Serial), workerKey))
			if err != nil {
				t.Fatal(err)
			}
			got, from, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"})
			if err != nil || from != "1.2.3" {
				t.Fatalf("from %s, %v", from, err)
			}
			w := r.isVersion(was, "2.0.0")
			if w.PluginDigest != digest2 || w.StateReason != "" || got.ManifestSHA256 != w.ManifestSHA256 || w.ManifestSHA256 == was.ManifestSHA256 {
				t.Errorf("row %+v, answer %+v", w, got)
			}
			if state == worker.StateStopped {
				r.atRest(w.Serial)
				if w.State != worker.StateStopped {
					t.Errorf("a stopped worker is %s", w.State)
				}
			} else {
				r.whole(w)
			}
			if r.launcher.images[w.Serial] != digest2 {
				t.Errorf("runs %s", r.launcher.images[w.Serial])
			}
			again, err := os.ReadFile(filepath.Join(r.stage.Dir(was.Serial), workerKey))
			if err != nil || !bytes.Equal(key, again) {
				t.Errorf("another key, %v", err)
			}
			text, err := os.ReadFile(filepath.Join(r.stage.Dir(was.Serial), identity.File))
			var me identity.Identity
			if err := errors.Join(err, json.Unmarshal(text, &me)); err != nil || me.TypeVersion != "2.0.0" || me.WorkerSerial != string(was.Serial) {
				t.Errorf("identity %+v, %v", me, err)
			}
			entries := r.entries()
			last := entries[len(entries)-1]
			if state == worker.StateStopped {
				if last.Kind != record.WorkerStopped {
					t.Errorf("entry %+v", last)
				}
				last = entries[len(entries)-2]
			}
			if last.Kind != record.Upgrade || last.Worker.Version != "2.0.0" || last.Worker.ManifestSHA256 != w.ManifestSHA256 || last.Reason != "from 1.2.3" {
				t.Errorf("entry %+v", last)
			}
			if existing, err := r.forge.Forge(t.Context(), nora); err != nil || !existing.Existed {
				t.Errorf("the request that made it: %+v, %v", existing, err)
			}
		})
	}
}

// TestForgeOfWhatWasUpgraded: the request that made a worker finds it as long as it
// is what the request says; what the request leaves open may be upgraded.
func TestForgeOfWhatWasUpgraded(t *testing.T) {
	t.Parallel()
	ahoy := []byte(`{"greeting":"ahoy"}`)
	version := "type_version is 2.0.0, asked for 1.2.3"
	config := `config is {"greeting":"hi"}, asked for {"greeting":"ahoy"}`
	for _, c := range []struct {
		version string
		config  []byte
		upgrade UpgradeRequest
		want    string // empty where it exists
	}{
		{"", nil, UpgradeRequest{Version: "2.0.0", Config: ahoy}, ""},
		{"", []byte(` {} `), UpgradeRequest{Version: "2.0.0", Config: ahoy}, ""},
		{"1.2.3", nil, UpgradeRequest{Version: "1.2.3", Config: ahoy}, ""},
		{"", ahoy, UpgradeRequest{Version: "2.0.0"}, ""},
		{"1.2.3", nil, UpgradeRequest{Version: "2.0.0"}, version + ": conflict"},
		{"", ahoy, UpgradeRequest{Version: "2.0.0", Config: []byte(`{"greeting":"hi"}`)}, config + ": conflict"},
		{"1.2.3", ahoy, UpgradeRequest{Version: "2.0.0", Config: []byte(`{"greeting":"hi"}`)}, version + "; " + config + ": conflict"},
	} {
		r := newRig(t)
		r.others = map[string]string{"2.0.0": digest2}
		request := nora
		request.Version, request.Config = c.version, c.config
		made, err := r.forge.Forge(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.forge.Upgrade(t.Context(), made.Worker.Serial, c.upgrade); err != nil {
			t.Fatal(err)
		}
		again, err := r.forge.Forge(t.Context(), request)
		switch {
		case c.want == "" && (err != nil || !again.Existed || again.Worker.Serial != made.Worker.Serial):
			t.Errorf("%+v: %+v, %v", c, again, err)
		case c.want != "" && (!errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "upgraded since this request made it: "+c.want) || worker.HintOf(err) == ""):
			t.Errorf("%+v: %v (hint %q), want %s", c, err, worker.HintOf(err), c.want)
		}
	}
}

// TestUpgradeOfWhatChanges: what the Keeper has made of a worker between the
// request and the journal is what an undo brings back, and what an upgrade that
// succeeds keeps.
func TestUpgradeOfWhatChanges(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		r, was := upgradable(t, worker.StateLive)
		r.onLookup = func() {
			err := r.registry.Update(t.Context(), func(tx *registry.Tx) error {
				w, err := tx.Worker(was.Serial)
				w.Restarts, w.State, w.StateReason = 7, worker.StateFailed, "it was lost"
				return errors.Join(err, tx.UpdateWorker(w))
			})
			if err != nil {
				t.Error(err)
			}
			r.launcher.mu.Lock()
			defer r.launcher.mu.Unlock()
			r.launcher.running[was.Serial] = false
		}
		if fails {
			r.launcher.bad = digest2
		}
		w, _, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"})
		row := r.row(was.Serial)
		switch {
		case fails && (err == nil || row.State != worker.StateFailed || row.StateReason != "it was lost" || r.launcher.running[was.Serial]):
			t.Errorf("undone: %v, row %+v", err, row)
		case !fails && (err != nil || row.State != worker.StateLive || w.Restarts != 7):
			t.Errorf("upgraded: %v, row %+v, answer %+v", err, row, w)
		}
		if row.Restarts != 7 {
			t.Errorf("%d restarts, want 7", row.Restarts)
		}
	}
}

func TestUpgradeConfig(t *testing.T) {
	t.Parallel()
	r, was := upgradable(t, worker.StateLive)
	own := []byte(`{"greeting":"ahoy"}`)
	upgrade := func(version string, config []byte) (worker.Worker, error) {
		w, _, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: version, Config: config})
		return w, err
	}
	entries := len(r.entries())
	for _, version := range []string{"", "1.2.3"} { // its own
		if w, err := upgrade(version, nil); err != nil || w.ManifestSHA256 != was.ManifestSHA256 {
			t.Errorf("to itself: %+v, %v", w, err)
		}
		if w, err := upgrade(version, []byte(` { "greeting" : "hello" } `)); err != nil || w.ManifestSHA256 != was.ManifestSHA256 {
			t.Errorf("to its own config: %+v, %v", w, err)
		}
	}
	if len(r.entries()) != entries {
		t.Errorf("entries of nothing: %+v", r.entries()[entries:])
	}
	if w, err := upgrade("", own); err != nil || string(w.Config) != string(own) || w.TypeVersion != "1.2.3" {
		t.Errorf("another config: %+v, %v", w, err)
	}
	if w, err := upgrade("2.0.0", nil); err != nil || string(w.Config) != string(own) {
		t.Errorf("config not kept: %+v, %v", w, err)
	}
	if _, err := upgrade("1.2.3", []byte(`{"colour":"red"}`)); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("bad config: %v", err)
	}
	if _, err := upgrade("9.9.9", nil); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("unknown version: %v", err)
	}
	r.isVersion(was, "2.0.0")
	r.whole(r.row(was.Serial))
}

// TestUpgradeOfTampered: a folder that is not as it was made gets no new
// manifest.
func TestUpgradeOfTampered(t *testing.T) {
	t.Parallel()
	r, was := upgradable(t, worker.StateLive)
	file := filepath.Join(r.stage.Dir(was.Serial), "vault", "reflection.json")
	if err := os.WriteFile(file, []byte("{}"), 0o440); err != nil {
		t.Fatal(err)
	}
	_, _, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"})
	if !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), "vault/reflection.json") || worker.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	r.whole(was)
}

// TestUpgradeMatrix breaks every step in every way, one after another for one
// worker: each time the old version is back, with all that it had. In the end the
// same upgrade succeeds.
func TestUpgradeMatrix(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateLive, worker.StateStopped, worker.StateFailed} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			r, was := upgradable(t, state)
			for i, s := range r.forge.upgradeSteps() {
				for how, broken := range breaks {
					if s.name == "record" && how != "fails before" || state != worker.StateLive && how != "fails after" {
						continue
					}
					r.breakUpgrade(was, i, broken)
					r.isBack(was)
					if t.Failed() {
						t.Fatalf("%s %s", s.name, how)
					}
				}
			}
			if n := r.count(record.Upgrade); n != 0 {
				t.Errorf("%d upgrades recorded", n)
			}
			if _, _, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"}); err != nil {
				t.Fatal(err)
			}
			r.isVersion(was, "2.0.0")
		})
	}
}

// breakUpgrade upgrades a worker with a broken step.
func (r *rig) breakUpgrade(was worker.Worker, i int, broken func(func(context.Context, *job) error, func()) func(context.Context, *job) error) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	j, err := r.forge.upgradeJob(ctx, r.row(was.Serial), UpgradeRequest{Version: "2.0.0"})
	if err != nil {
		r.t.Fatal(err)
	}
	steps := r.forge.upgradeSteps()
	steps[i].do = broken(steps[i].do, cancel)
	if err = r.forge.run(ctx, j, steps); err == nil || !strings.Contains(err.Error(), steps[i].name+": ") {
		r.t.Fatalf("error %v does not name the step %s", err, steps[i].name)
	}
	if j.opened {
		if err := r.forge.comeBack(ctx, was, j.why); err != nil {
			r.t.Fatal(err)
		}
	}
}

// TestRegistryLostInAnUpgrade: the registry was made again, from the record, while
// the worker's folder was aside. What the registry knows is put back, and what it
// does not know is left alone.
func TestRegistryLostInAnUpgrade(t *testing.T) {
	t.Parallel()
	r, was := upgradable(t, worker.StateLive)
	r.upgradeSteps(was, "start")
	err := r.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return errors.Join(tx.SetState(was.Serial, worker.StateLive, ""), tx.DeleteMeta(beforeKey(was.Serial)))
	})
	if err != nil {
		t.Fatal(err)
	}
	r.recovered()
	r.isVersion(was, "1.2.3")
	if len(r.launcher.running) != 0 {
		t.Errorf("left: %v", r.launcher.running)
	}

	r, was = upgradable(t, worker.StateLive)
	r.upgradeSteps(was, "start")
	err = r.registry.Update(t.Context(), func(tx *registry.Tx) error {
		was.ManifestSHA256 = "another"
		return tx.UpdateWorker(was)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.forge.Recover(t.Context()); err == nil || !strings.Contains(err.Error(), "neither folder of worker nora") || !strings.Contains(worker.HintOf(err), "retire nora") {
		t.Error(err)
	}
	if left, err := r.stage.Asides(); err != nil || len(left) != 1 {
		t.Errorf("left aside: %v, %v", left, err)
	}
}

// TestUpgradeThatFails: the caller is told why, and the old version runs.
func TestUpgradeThatFails(t *testing.T) {
	t.Parallel()
	r, was := upgradable(t, worker.StateLive)
	r.launcher.bad = digest2
	_, _, err := r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"})
	if err == nil || !strings.Contains(err.Error(), "await heartbeat: the worker ended: exit code 7; its log ends: line") || worker.HintOf(err) == "" {
		t.Fatal(err)
	}
	r.isBack(was)
	entries := r.entries()
	last := entries[len(entries)-1]
	if last.Kind != record.WorkerRestarted || !strings.Contains(last.Reason, "its upgrade was undone: await heartbeat") {
		t.Errorf("entry %+v", last)
	}
	// Where the old version does not come back at once, it stays to be kept.
	r.noBeat = errInjected
	_, _, err = r.forge.Upgrade(t.Context(), was.Serial, UpgradeRequest{Version: "2.0.0"})
	if err == nil || !strings.Contains(err.Error(), "bring 1.2.3 back: ") {
		t.Fatal(err)
	}
	if r.row(was.Serial).State != worker.StateRestarting || !r.kept[was.Serial] || !r.attached[was.Serial] {
		t.Errorf("row %+v, kept %v", r.row(was.Serial), r.kept)
	}
	r.isVersion(was, "1.2.3")
}

// TestUpgradeDeath lets the host die after every step, and in the middle of the
// undo of every step: the next host brings the old version back; once the
// upgrade is recorded, the new one stays.
func TestUpgradeDeath(t *testing.T) {
	t.Parallel()
	for _, state := range []worker.State{worker.StateLive, worker.StateStopped, worker.StateFailed} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			r, was := upgradable(t, state)
			for i, s := range r.forge.upgradeSteps() {
				if s.name != "record" && state == worker.StateLive {
					j := r.upgradeSteps(was, "stop again")
					j.why = errInjected
					if err := r.forge.undo(t.Context(), j, r.forge.upgradeSteps()[i:]); err != nil {
						t.Fatal(err)
					}
					r.recovered()
					r.isRecovered(was)
				}
				r.upgradeSteps(was, s.name)
				r.recovered()
				if s.name == "record" {
					r.isVersion(was, "2.0.0")
					return
				}
				r.isRecovered(was)
				if t.Failed() {
					t.Fatal(s.name)
				}
			}
		})
	}
}

// recovered is the next host, which recovers twice: the second changes nothing.
func (r *rig) recovered() {
	r.t.Helper()
	r.die()
	for range 2 {
		if err := r.forge.Recover(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
	if _, err := r.stage.Sweep(); err != nil { // as the host does next
		r.t.Fatal(err)
	}
}

// isRecovered checks that a worker is what it was, or on its way to it.
func (r *rig) isRecovered(was worker.Worker) {
	r.t.Helper()
	w := r.isVersion(was, was.TypeVersion)
	switch {
	case was.State != worker.StateLive:
		if w.State != was.State || w.StateReason != was.StateReason || r.launcher.running[w.Serial] {
			r.t.Errorf("was %s (%s), is %s (%s), running %t", was.State, was.StateReason, w.State, w.StateReason, r.launcher.running[w.Serial])
		}
	case w.State == worker.StateRestarting: // the host keeps it
		if r.launcher.running[w.Serial] {
			r.t.Errorf("restarting: running %v", r.launcher.running)
		}
		if _, err := r.forge.Restart(r.t.Context(), w.Serial, 0, 0); err != nil {
			r.t.Fatal(err)
		}
	case w.State != worker.StateLive || !r.launcher.running[w.Serial]:
		r.t.Errorf("row %+v, running %v", w, r.launcher.running)
	}
}

// TestUpgradeIsUndoneLater: an undo that fails leaves the row; whoever comes next
// to the worker undoes it.
func TestUpgradeIsUndoneLater(t *testing.T) {
	t.Parallel()
	for _, stopped := range []bool{false, true} {
		r, was := upgradable(t, worker.StateLive)
		r.upgradeSteps(was, "start")
		r.launcher.stuck = errors.New("stuck")
		if err := r.forge.Recover(t.Context()); !errors.Is(err, r.launcher.stuck) {
			t.Fatal(err)
		}
		if _, err := r.forge.Stop(t.Context(), was.Serial, 0); !errors.Is(err, r.launcher.stuck) || worker.HintOf(err) == "" {
			t.Fatal(err)
		}
		if _, err := r.stage.Sweep(); err != nil || r.row(was.Serial).State != worker.StateUpgrading {
			t.Fatalf("row %+v, %v", r.row(was.Serial), err)
		}
		r.launcher.stuck = nil
		if !stopped {
			if err := r.forge.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.isRecovered(was)
			continue
		}
		if w, err := r.forge.Stop(t.Context(), was.Serial, 0); err != nil || w.State != worker.StateStopped {
			t.Fatalf("%+v, %v", w, err)
		}
		r.isVersion(was, "1.2.3")
		r.atRest(was.Serial)
	}
}
