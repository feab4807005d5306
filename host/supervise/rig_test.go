package supervise

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = time.Minute

// eventually waits until that holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %s", what, patience)
		}
	}
}

// run is one run of a worker.
type run struct {
	exit  launch.Exit
	ended chan struct{} // closed with the run; exit is set before
}

// launcher runs workers that are nothing, and keeps to the contract of package
// launch as far as the supervisor can tell: above all, no twins.
type launcher struct {
	launch.Launcher // what the supervisor must not call

	mu     sync.Mutex
	last   map[worker.Serial]*run
	open   map[worker.Serial]bool // started and not yet stopped
	starts map[worker.Serial]int

	// The script. Set before anything is kept.
	onStart func(serial worker.Serial, n int) error // before the nth start
	onStop  func() error
	onWait  func() error
	diesAt  func(n int) bool // whether the nth run ends as soon as it begins
}

func newLauncher() *launcher {
	return &launcher{last: map[worker.Serial]*run{}, open: map[worker.Serial]bool{}, starts: map[worker.Serial]int{}}
}

func (l *launcher) Prepare(context.Context, launch.Image) (string, error) { return "", nil }

func (l *launcher) Create(_ context.Context, s launch.Spec) error {
	return fmt.Errorf("create %s: %w", s.Serial, worker.ErrConflict)
}

func (l *launcher) Start(_ context.Context, serial worker.Serial) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[serial] {
		return fmt.Errorf("start %s: twin: %w", serial, worker.ErrConflict)
	}
	n := l.starts[serial] + 1
	l.starts[serial] = n
	if l.onStart != nil {
		if err := l.onStart(serial, n); err != nil {
			return err
		}
	}
	r := &run{ended: make(chan struct{})}
	l.last[serial], l.open[serial] = r, true
	if l.diesAt != nil && l.diesAt(n) {
		r.exit.Code = 3
		close(r.ended)
	}
	return nil
}

func (l *launcher) Wait(ctx context.Context, serial worker.Serial) (launch.Exit, error) {
	if l.onWait != nil {
		if err := l.onWait(); err != nil {
			return launch.Exit{}, err
		}
	}
	l.mu.Lock()
	r := l.last[serial]
	l.mu.Unlock()
	if r == nil {
		return launch.Exit{Unknown: true}, nil
	}
	select {
	case <-r.ended:
		return r.exit, nil
	case <-ctx.Done():
		return launch.Exit{}, ctx.Err()
	}
}

func (l *launcher) Stop(_ context.Context, serial worker.Serial, _ time.Duration) error {
	if l.onStop != nil {
		if err := l.onStop(); err != nil {
			return err
		}
	}
	l.end(serial, 143)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[serial] = false
	return nil
}

// end makes a running worker exit.
func (l *launcher) end(serial worker.Serial, code int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.last[serial]
	if r == nil {
		return
	}
	select {
	case <-r.ended:
	default:
		r.exit.Code = code
		close(r.ended)
	}
}

func (l *launcher) started(serial worker.Serial) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.starts[serial]
}

// runs makes a worker one that runs already.
func (l *launcher) runs(serial worker.Serial) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last[serial], l.open[serial] = &run{ended: make(chan struct{})}, true
}

// pulse is a script of heartbeats: by default all is well.
type pulse struct {
	await  func(ctx context.Context) error
	missed atomic.Int32
	deaf   atomic.Bool // pings are not answered
}

func (p *pulse) Missed(worker.Serial, time.Time) int { return int(p.missed.Load()) }

func (p *pulse) Ping(context.Context, worker.Serial) error {
	if p.deaf.Load() {
		return errors.New("no answer")
	}
	return nil
}

func (p *pulse) AwaitHeartbeat(ctx context.Context, _ worker.Serial, _ time.Time) error {
	if p.await == nil {
		return nil
	}
	return p.await(ctx)
}

// rows is the real registry, whose disk may be full for some writes.
type rows struct {
	*registry.Registry
	full  atomic.Int32
	tried atomic.Int32
}

func (r *rows) Update(ctx context.Context, closure func(*registry.Tx) error) error {
	r.tried.Add(1)
	if r.full.Add(-1) >= 0 {
		return fmt.Errorf("commit transaction: %w", worker.ErrUnavailable)
	}
	return r.Registry.Update(ctx, closure)
}

// rig is a supervisor over a real registry.
type rig struct {
	*Supervisor
	t        *testing.T
	rows     *rows
	launcher *launcher
	pulse    *pulse
}

// newRig makes a supervisor that is in a hurry.
func newRig(t *testing.T) *rig {
	t.Helper()
	r, err := registry.Open(t.Context(), registry.Config{Path: filepath.Join(t.TempDir(), "registry.db")})
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t, rows: &rows{Registry: r}, launcher: newLauncher(), pulse: &pulse{}}
	g.Supervisor = New(Config{
		Launcher: g.launcher, Registry: g.rows, Pulse: g.pulse, LastWords: func(worker.Serial) string { return "; its log ends: bye" }, Interval: time.Millisecond,
		Spec:    func(w worker.Worker) launch.Spec { return launch.Spec{Serial: w.Serial} },
		Changed: func(worker.Serial) {}, Logger: hclog.NewNullLogger(),
	})
	g.timing = timing{first: time.Microsecond, most: time.Millisecond, healthy: time.Hour, restarts: 10, pause: time.Millisecond}
	t.Cleanup(func() {
		g.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// worker is a new worker in the registry, which runs.
func (g *rig) worker(state worker.State) worker.Worker {
	g.t.Helper()
	w := worker.Worker{
		Type: "template", TypeVersion: "1.0.0", ClassCode: "A1", Model: "DMN-TP-1", State: state,
		PublicKey: []byte("public"), Config: []byte(`{"secret":"hunter2"}`), CreatedAt: time.Now(),
	}
	err := g.rows.Registry.Update(g.t.Context(), func(tx *registry.Tx) (err error) {
		if w.Serial, err = tx.AllocateSerial(w.Model); err != nil {
			return err
		}
		w.Name = string(w.Serial)
		if w.LedgerCode, err = tx.AllocateLedgerCode(w.ClassCode); err != nil {
			return err
		}
		return tx.InsertWorker(w)
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.launcher.runs(w.Serial)
	return w
}

func (g *rig) row(serial worker.Serial) worker.Worker {
	g.t.Helper()
	w, err := g.rows.Worker(g.t.Context(), serial)
	if err != nil {
		g.t.Fatal(err)
	}
	return w
}

// is waits until the worker is in a state after so many restarts.
func (g *rig) is(serial worker.Serial, state worker.State, restarts int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("%s after %d restarts", state, restarts), func() bool {
		w := g.row(serial)
		return w.State == state && w.Restarts == restarts
	})
}

// letGo waits until the supervisor has let go of a worker by itself.
func (g *rig) letGo(serial worker.Serial) {
	g.t.Helper()
	eventually(g.t, "the supervisor lets go", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.kept[serial] == nil
	})
}

// entries are the record's, all of them readable.
func (g *rig) entries() []record.Entry {
	g.t.Helper()
	var all []record.Entry
	for group, err := range g.rows.Groups(g.t.Context(), 0) {
		if err != nil {
			g.t.Fatal(err)
		}
		for _, line := range group.Entries {
			e, err := record.Decode(line)
			if err != nil {
				g.t.Fatal(err)
			}
			all = append(all, e)
		}
	}
	return all
}

// kinds are the kinds of the entries, in their order.
func (g *rig) kinds() []record.Kind {
	g.t.Helper()
	var all []record.Kind
	for _, e := range g.entries() {
		all = append(all, e.Kind)
	}
	return all
}
