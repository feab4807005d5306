package forge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

var errInjected = errors.New("injected")

// breaks are the ways to break a step.
var breaks = map[string]func(do func(context.Context, *job) error, cancel func()) func(context.Context, *job) error{
	"fails before": func(func(context.Context, *job) error, func()) func(context.Context, *job) error {
		return func(context.Context, *job) error { return errInjected }
	},
	"fails after": func(do func(context.Context, *job) error, _ func()) func(context.Context, *job) error {
		return func(ctx context.Context, j *job) error { return errors.Join(do(ctx, j), errInjected) }
	},
	"is cancelled": func(do func(context.Context, *job) error, cancel func()) func(context.Context, *job) error {
		return func(ctx context.Context, j *job) error {
			cancel()
			return errors.Join(do(ctx, j), ctx.Err())
		}
	},
}

// TestStepMatrix breaks every step in every way: nothing is left but the void,
// and the same request then succeeds.
func TestStepMatrix(t *testing.T) {
	for i, s := range New(Config{}).steps() {
		for how, broken := range breaks {
			if s.name == "record" && how != "fails before" {
				continue // the commit point: once it is done the worker exists
			}
			t.Run(s.name+" "+how, func(t *testing.T) {
				r := newRig(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				j, err := r.forge.newJob(ctx, nora)
				if err != nil {
					t.Fatal(err)
				}
				steps := r.forge.steps()
				steps[i].do = broken(steps[i].do, cancel)
				err = r.forge.run(ctx, j, steps)
				if err == nil || !strings.Contains(err.Error(), s.name+": ") {
					t.Fatalf("error %v does not name the step", err)
				}
				r.nothingLeft(s.name, j.worker.Port)
				voids := 1
				if i == 0 && how != "fails after" {
					voids = 0 // nothing was allocated
				}
				if n := r.count(record.Void); n != voids || len(r.entries()) != voids {
					t.Errorf("%d voids of %d entries, want %d", n, len(r.entries()), voids)
				}
				made, err := r.forge.Forge(t.Context(), nora)
				if err != nil {
					t.Fatal(err)
				}
				r.whole(made.Worker)
				if voids == 1 && made.Worker.LedgerCode != "A1-000002" {
					t.Errorf("ledger code %s: a void one was used again", made.Worker.LedgerCode)
				}
			})
		}
	}
}

// TestNotOnDisk: a worker whose folder could not be written to disk does not come to
// be, however well it runs.
func TestNotOnDisk(t *testing.T) {
	r := newRig(t)
	steps := r.forge.steps()
	i := slices.IndexFunc(steps, func(s step) bool { return s.name == "promote stage" })
	steps[i].do = func(ctx context.Context, j *job) error {
		if err := r.forge.promote(ctx, j); err != nil {
			return err
		}
		done := j.onDisk
		j.onDisk = func() error { return errors.Join(done(), errInjected) }
		return nil
	}
	j, err := r.forge.newJob(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.forge.run(t.Context(), j, steps); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "record: ") {
		t.Errorf("%v", err)
	}
	r.nothingLeft("record", j.worker.Port)
}

// TestDeathMatrix lets the host die after every step, and before the undo of
// every step: the next host rolls back.
func TestDeathMatrix(t *testing.T) {
	steps := New(Config{}).steps()
	for i := range steps[:len(steps)-1] {
		t.Run("after "+steps[i].name, func(t *testing.T) {
			r := newRig(t)
			j := r.doSteps(i + 1)
			r.die()
			if err := r.forge.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.nothingLeft(steps[i].name, j.worker.Port)
			if n := r.count(record.Void); n != 1 {
				t.Errorf("%d voids", n)
			}
		})
		t.Run("undoing "+steps[i].name, func(t *testing.T) {
			r := newRig(t)
			j := r.doSteps(len(steps) - 1)
			j.why = errInjected
			if err := r.forge.undo(t.Context(), j, r.forge.steps()[i+1:]); err != nil {
				t.Fatal(err)
			}
			r.die()
			for range 2 { // recovering what is recovered changes nothing
				if err := r.forge.Recover(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r.nothingLeft(steps[i].name, j.worker.Port)
			if n := r.count(record.Void); n != 1 {
				t.Errorf("%d voids", n)
			}
		})
	}
}

// doSteps runs the first n steps and stops there.
func (r *rig) doSteps(n int) *job {
	r.t.Helper()
	j, err := r.forge.newJob(r.t.Context(), nora)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range r.forge.steps()[:n] {
		if err := s.do(r.t.Context(), j); err != nil {
			r.t.Fatalf("%s: %v", s.name, err)
		}
	}
	return j
}

func TestForge(t *testing.T) {
	r := newRig(t)
	made, err := r.forge.Forge(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	w := made.Worker
	r.whole(w)
	if made.Existed || w.Model != "DMN-TP-1" || w.Serial.Model() != w.Model || w.LedgerCode != "A1-000001" || w.TypeVersion != "1.2.3" {
		t.Errorf("worker %+v", w)
	}
	if string(w.Config) != `{"greeting":"hello"}` {
		t.Errorf("config %s: the default is missing", w.Config)
	}
	root, err := r.stage.OpenRoot(w.Serial)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	m, err := manifest.Check(root, r.keys.Manifest().Public())
	if err != nil || m.WorkerSerial != string(w.Serial) || m.ForgeVersion != "2.0" {
		t.Errorf("manifest %+v, %v", m, err)
	}

	again, err := r.forge.Forge(t.Context(), nora)
	if err != nil || !again.Existed || again.Worker.Serial != w.Serial {
		t.Errorf("again: %+v, %v", again, err)
	}
	same := nora
	same.Version, same.Config = "1.2.3", []byte(` { "greeting" : "hello" } `)
	if again, err := r.forge.Forge(t.Context(), same); err != nil || !again.Existed || again.Worker.Serial != w.Serial {
		t.Errorf("the same in other words: %+v, %v", again, err)
	}
	for want, edit := range map[string]func(*Request){
		"class_code is A1, asked for B2":                              func(r *Request) { r.ClassCode = "B2" },
		`config is {"greeting":"hello"}, asked for {"greeting":"hi"}`: func(r *Request) { r.Config = []byte(`{"greeting":"hi"}`) },
		"worker_type is template, asked for ledger":                   func(r *Request) { r.Type = "ledger" },
		"type_version is 1.2.3, asked for 2.0.0":                      func(r *Request) { r.Version = "2.0.0" },
		`config is {"greeting":"hello"}, asked for {"x":1}`:           func(r *Request) { r.Config = []byte(`{"x":1}`) },
		`another request: type_version is 1.2.3, asked for 2.0.0; class_code is A1, asked for B2; config is {"greeting":"hello"}, asked for {"greeting":"hi"}: conflict`: func(r *Request) {
			r.Version, r.ClassCode, r.Config = "2.0.0", "B2", []byte(`{"greeting":"hi"}`)
		},
	} {
		other := nora
		edit(&other)
		if _, err := r.forge.Forge(t.Context(), other); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if n := len(r.entries()); n != 1 {
		t.Errorf("%d entries, want the forge alone", n)
	}
}

// TestSick: a worker that reports a broken vault is not made.
func TestSick(t *testing.T) {
	r := newRig(t)
	r.noBeat = fmt.Errorf("vault_integrity=false: config.json: %w", worker.ErrCorrupt)
	if _, err := r.forge.Forge(t.Context(), nora); !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), "await heartbeat: vault_integrity=false") {
		t.Fatal(err)
	}
	r.nothingLeft("sick worker", 0)
}

// TestJoin sends the same request many times at once, with some others.
func TestJoin(t *testing.T) {
	r := newRig(t)
	other := nora
	other.ClassCode = "B2"
	var mu sync.Mutex
	serials, made, conflicts := map[worker.Serial]bool{}, 0, 0
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			request := nora
			if i%8 == 7 {
				request = other
			}
			result, err := r.forge.Forge(t.Context(), request)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, worker.ErrConflict):
				conflicts++
			case err != nil:
				t.Error(err)
			default:
				serials[result.Worker.Serial] = true
				if !result.Existed {
					made++
				}
			}
		})
	}
	all.Wait()
	if len(serials) != 1 || made != 1 || conflicts == 0 {
		t.Errorf("%d workers, %d made, %d conflicts", len(serials), made, conflicts)
	}
	if n := len(r.entries()); n != 1 {
		t.Errorf("%d entries", n)
	}
}

// TestJoinedCallerGoesOn: who waits does not suffer from the first's giving up.
func TestJoinedCallerGoesOn(t *testing.T) {
	r := newRig(t)
	first, cancel := context.WithCancel(t.Context())
	began, done := make(chan struct{}), make(chan error, 1)
	r.onBeat = sync.OnceFunc(func() { close(began); <-first.Done() })
	go func() {
		_, err := r.forge.Forge(first, nora)
		done <- err
	}()
	<-began
	joined := make(chan error, 1)
	go func() {
		_, err := r.forge.Forge(t.Context(), nora)
		joined <- err
	}()
	cancel()
	if err := <-done; err == nil {
		t.Error("the first call succeeded")
	}
	if err := <-joined; err != nil {
		t.Errorf("joined: %v", err)
	}
}

// TestStillborn: a worker that ends before its first heartbeat is told of at
// once, with what it said.
func TestStillborn(t *testing.T) {
	r := newRig(t)
	r.launcher.exit, r.launcher.says = &launch.Exit{Code: 3}, "cannot open \x1bconfig\n"
	_, err := r.forge.Forge(t.Context(), nora)
	if err == nil || !strings.Contains(err.Error(), "await heartbeat: the worker ended: exit code 3; its log ends: cannot open  config") {
		t.Fatal(err)
	}
	r.nothingLeft("stillborn", 0)
}

// TestConfig: what config.json becomes, and what is no config.
func TestConfig(t *testing.T) {
	r := newRig(t)
	free := Type{Descriptor: &workerv1.TypeDescriptor{Name: "free", ConfigSchema: []byte(`{"properties":{"n":{"type":"integer","default":1}}}`)}}
	for _, c := range []struct{ given, want string }{
		{"", `{"n":1}`},
		{" {} ", `{"n":1}`},
		{`{"z":"<&>","n":9007199254740993}`, `{"n":9007199254740993,"z":"<&>"}`},
	} {
		if got, err := configFor(free, []byte(c.given)); err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v", c.given, got, err)
		}
	}
	for _, bad := range []string{"{", "null", "[]", "{}{}", `{"n":"x"}`, `{"x":"` + strings.Repeat("<", maxConfig) + `"}`} {
		if _, err := configFor(free, []byte(bad)); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%.40s: %v", bad, err)
		}
	}
	// The largest config still fits every entry that tells of it.
	large := nora
	large.Config = []byte(`{"greeting":"` + strings.Repeat("<", maxConfig-20) + `"}`)
	r.noBeat = errInjected
	if _, err := r.forge.Forge(t.Context(), large); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	r.nothingLeft("large config", 0)
	r.noBeat = nil
	if _, err := r.forge.Forge(t.Context(), large); err != nil {
		t.Fatal(err)
	}
}

// TestUndoIsTriedAgain: an undo that fails leaves the row; once it can succeed,
// nothing is left.
func TestUndoIsTriedAgain(t *testing.T) {
	r := newRig(t)
	r.noBeat, r.launcher.stuck = errInjected, errors.New("stuck")
	if _, err := r.forge.Forge(t.Context(), nora); !errors.Is(err, errInjected) || !errors.Is(err, r.launcher.stuck) {
		t.Fatal(err)
	}
	if _, err := r.forge.Forge(t.Context(), nora); !errors.Is(err, worker.ErrConflict) {
		t.Fatalf("forge over the rest of another: %v", err)
	}
	if err := r.forge.Recover(t.Context()); !errors.Is(err, r.launcher.stuck) {
		t.Fatal(err)
	}
	r.launcher.stuck = nil
	if err := r.forge.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft("undone later", 0)
}

func TestRetire(t *testing.T) {
	r := newRig(t)
	made, err := r.forge.Forge(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	w := made.Worker
	for range 2 { // the second changes nothing
		retired, err := r.forge.Retire(t.Context(), w.Serial, 0)
		if err != nil || retired.State != worker.StateRetired || retired.RetiredAt.IsZero() {
			t.Fatalf("%+v, %v", retired, err)
		}
	}
	if _, err := os.Stat(r.stage.Dir(w.Serial)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder: %v", err)
	}
	if len(r.launcher.running)+len(r.attached)+len(r.kept)+len(r.held) != 0 {
		t.Errorf("left: %v %v %v %v", r.launcher.running, r.attached, r.kept, r.held)
	}
	if taken, err := r.registry.PortTaken(t.Context(), w.Port); err != nil || !taken {
		t.Errorf("port %d is not in quarantine: %v", w.Port, err)
	}
	if n := r.count(record.Retire); n != 1 {
		t.Errorf("%d retirements recorded", n)
	}
	next, err := r.forge.Forge(t.Context(), nora)
	if err != nil || next.Existed || next.Worker.Serial == w.Serial || next.Worker.LedgerCode == w.LedgerCode || next.Worker.Port == w.Port {
		t.Errorf("the name again: %+v, %v", next, err)
	}
	if _, err := r.forge.Retire(t.Context(), "DMN-TP-1-00000000-00000", 0); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("unknown worker: %v", err)
	}
}

// TestRetireIsFinished: a retirement that a host died over goes on at the next
// start.
func TestRetireIsFinished(t *testing.T) {
	r := newRig(t)
	made, err := r.forge.Forge(t.Context(), nora)
	if err != nil {
		t.Fatal(err)
	}
	err = r.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return tx.SetState(made.Worker.Serial, worker.StateRetiring, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	r.die()
	if err := r.forge.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	w, err := r.registry.Worker(t.Context(), made.Worker.Serial)
	if err != nil || w.State != worker.StateRetired || len(r.launcher.running) != 0 || r.count(record.Retire) != 1 {
		t.Errorf("%+v, %v, launcher %v", w, err, r.launcher.running)
	}
}

// TestFewAtATime: however many ask, only so many workers are in the making, and
// who waits too long for a place hears it.
func TestFewAtATime(t *testing.T) {
	r := newRig(t)
	n := cap(r.forge.slots)
	var making atomic.Int32
	full, release := make(chan struct{}), make(chan struct{})
	r.onBeat = func() {
		if int(making.Add(1)) == n {
			close(full)
		}
		<-release
	}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			request := nora
			request.Name = fmt.Sprintf("w%d", i)
			if _, err := r.forge.Forge(t.Context(), request); err != nil {
				t.Error(err)
			}
		})
	}
	<-full
	late := nora
	late.Timeout = 3 * time.Second
	if _, err := r.forge.Forge(t.Context(), late); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for the forges before it") {
		t.Errorf("one more than %d: %v", n, err)
	}
	close(release)
	all.Wait()
	late.Timeout = 0
	r.onBeat = nil
	if _, err := r.forge.Forge(t.Context(), late); err != nil {
		t.Error(err)
	}
}

// TestSettledSoon: what cannot be undone because the launcher is away is undone
// soon after that is back, not at the next round half a minute later.
func TestSettledSoon(t *testing.T) {
	r := newRig(t)
	r.noBeat, r.launcher.stuck = errInjected, worker.ErrUnavailable
	if _, err := r.forge.Forge(t.Context(), nora); !errors.Is(err, worker.ErrUnavailable) {
		t.Fatal(err)
	}
	r.launcher.stuck = nil
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.forge.Run(ctx) }()
	for r.count(record.Void) == 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	r.nothingLeft("settled soon", 0)
}
