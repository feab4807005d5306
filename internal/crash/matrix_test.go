package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dals-host/dals-host/sdk/client"
)

// TestMatrix kills the host at every point that an operation passes, each
// listed by a traced run of it, and starts the next host on the same folder:
// whatever the point, what is there is whole, and nothing else is.
func TestMatrix(t *testing.T) {
	table := &table{}
	var g errgroup.Group
	g.SetLimit(atOnce)
	begin := func(launcher, name string, run func(*testing.T)) {
		g.Go(func() error {
			t.Run(launcher+"/"+name, run)
			return nil
		})
	}
	kill := func(launcher, name string, run func(*matrix)) {
		begin(launcher, name, func(t *testing.T) { run(newMatrix(t, launcher, table)) })
	}
	kill("containerd", imaging.name, func(m *matrix) { m.all(imaging) })
	begin("containerd", claiming.name, func(t *testing.T) { newWarmMatrix(t, table).all(claiming) })
	begin("containerd", "containerd dies: "+claiming.name, func(t *testing.T) { newWarmMatrix(t, table).withoutContainerd(claim) })
	begin("containerd", claimed.name, func(t *testing.T) { newWarmMatrix(t, table).allStarts(claimed) })
	for _, name := range []string{"forge", "upgrade", "retire", "start", "stop"} {
		kill("containerd", "containerd dies: "+name, func(m *matrix) { m.withoutContainerd(operationOf(name)) })
	}
	for _, launcher := range []string{"containerd", "process"} {
		begin(launcher, "first start", func(t *testing.T) { firstStarts(t, launcher, table) })
		for _, op := range operations {
			kill(launcher, op.name, func(m *matrix) { m.all(op) })
		}
		for _, r := range recoveries {
			kill(launcher, r.name, func(m *matrix) { m.allStarts(r) })
		}
	}
	_ = g.Wait() // what failed has been told
	table.print(t)
}

// atOnce is how many hosts are killed at a time: mostly they wait for the disk
// and for each other.
const atOnce = 4

// matrix is one host, killed again and again.
type matrix struct {
	*host
	table  *table
	before *lockedBuffer    // the log of the host before
	calls  map[string]int64 // that each worker has counted in its state
	// ask sends chameleon.about to a worker and gives its answer; nil to do so by
	// the host's client.
	ask func(ctx context.Context, name string) (json.RawMessage, error)
}

func newMatrix(t *testing.T, launcher string, table *table) *matrix {
	t.Helper()
	m := &matrix{host: newHost(t, launcher), table: table, before: &lockedBuffer{}, calls: map[string]int64{}}
	m.install(versions)
	m.boot(nil)
	m.registered(len(versions))
	for version, behaviour := range versions { // the first of each makes the image
		if err := m.forge(version); (err == nil) != (behaviour == "well") {
			t.Fatalf("forge %s: %v\n%s", version, err, m.log)
		}
		if err := m.retire("nora"); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// next starts the next host, armed for a point. An empty one is none.
func (m *matrix) next(point string) {
	m.t.Helper()
	m.before = m.log
	m.boot([]string{"DALS_FAILPOINT=" + point})
}

// operation is something that a host is asked for and dies over.
type operation struct {
	name string
	// first is the point from which the operation's own count.
	first string
	// from, if not empty, begins the names of the first of those that are tried:
	// those before it are another operation's.
	from string
	// upto, if not empty, begins the name of the last that is tried.
	upto string
	// ready brings about what the operation needs, on the host that will die.
	ready func(*matrix) error
	// run ends as it should, or loses its host.
	run func(*matrix) error
	// runner is what the log calls the steps that the operation takes, if it is a
	// list of them.
	runner string
}

// all lists the points of an operation and dies at each.
func (m *matrix) all(op operation) {
	m.t.Helper()
	began := time.Now()
	points := m.points(op)
	m.complete(op, points)
	if m.listed(op.name, points); *update {
		return
	}
	m.kill()
	m.next(points[0])
	for i, point := range points {
		next := ""
		if i+1 < len(points) {
			next = points[i+1]
		}
		err := m.die(op)
		m.next(next)
		m.judge(op.name, point, errors.Join(err, m.sound()))
	}
	m.table.took(op.name, m.launcher, time.Since(began))
}

// judge counts a point, and tells of one that failed.
func (m *matrix) judge(operation, point string, err error) {
	m.t.Helper()
	m.table.add(operation, m.launcher, err)
	if err == nil {
		return
	}
	m.t.Errorf("%s, killed at %s: %v\nthe host that died:\n%s\nthe next host:\n%s", operation, point, err, tail(m.before), tail(m.log))
	// What an unsound point left must not be the next one's.
	workers, _ := m.client.Workers(m.t.Context(), client.WorkerFilter{})
	for _, w := range workers {
		_ = m.retire(w.WorkerSerial)
	}
}

func tail(log *lockedBuffer) string {
	text := log.String()
	return text[max(0, len(text)-5000):]
}

// points are those that a run of the operation passes, with those that it
// causes in the background: NAME#N@FIRST is the N-th hit of NAME in it.
func (m *matrix) points(op operation) []string {
	m.t.Helper()
	trace := filepath.Join(m.t.TempDir(), "trace")
	m.kill()
	m.boot([]string{"DALS_FAILPOINT_TRACE=" + trace})
	if err := errors.Join(op.ready(m), m.atRest()); err != nil {
		m.t.Fatalf("%s: %v\n%s", op.name, err, m.log)
	}
	if err := op.run(m); err != nil {
		m.t.Fatalf("%s: %v\n%s", op.name, err, m.log)
	}
	names := quiet(m.t, trace)
	first := lastIndex(names, op.first)
	if first < 0 {
		m.t.Fatalf("%s: the trace has no point %s: %q", op.name, op.first, names)
	}
	points, own := []string(nil), op.from == ""
	for _, p := range numbered(names[first+1:]) {
		own = own || strings.HasPrefix(p, op.from)
		if own {
			points = append(points, p+"@"+op.first)
		}
		if op.upto != "" && strings.HasPrefix(p, op.upto) {
			break
		}
	}
	if len(points) == 0 {
		m.t.Fatalf("%s: no points in %q", op.name, names)
	}
	return points
}

// numbered makes each name NAME#N, where it is the N-th of its name.
func numbered(names []string) []string {
	hits := map[string]int{}
	points := make([]string, len(names))
	for i, name := range names {
		hits[name]++
		points[i] = fmt.Sprintf("%s#%d", name, hits[name])
	}
	return points
}

// quiet is the trace once nothing was added to it for a while: what an operation
// leaves for later has come then.
func quiet(t testing.TB, trace string) []string {
	t.Helper()
	var text []byte
	for still := time.Now(); time.Since(still) < 2*time.Second; time.Sleep(20 * time.Millisecond) {
		now, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		if len(now) != len(text) {
			text, still = now, time.Now()
		}
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func lastIndex(names []string, name string) int {
	for i, n := range slices.Backward(names) {
		if n == name {
			return i
		}
	}
	return -1
}

// complete checks that every step of the operation has its two points.
func (m *matrix) complete(op operation, points []string) {
	m.t.Helper()
	if op.runner == "" {
		return
	}
	steps := m.stepsTaken(op.runner)
	for _, step := range steps {
		for _, when := range []string{"before", "after"} {
			if !slices.Contains(points, step+"/"+when+"#1@"+op.first) {
				m.t.Errorf("%s: there is no point %s/%s among %q", op.name, step, when, points)
			}
		}
	}
	if len(steps) == 0 || len(points) < 2*len(steps) {
		m.t.Errorf("%s: %d points for %d steps", op.name, len(points), len(steps))
	}
}

// atRest waits until nothing goes on in the background any more: the next points
// are the operation's own.
func (m *matrix) atRest() error {
	return within(patience, func() error {
		if err := m.mirrored(); err != nil {
			return err
		}
		s, err := m.client.Status(m.t.Context())
		if err == nil && s.CheckpointSize != s.RecordSize {
			err = fmt.Errorf("%d of %d entries are published", s.CheckpointSize, s.RecordSize)
		}
		return err
	})
}

// mirrored says whether every worker is what it is going to be, and its file
// tells so.
func (m *matrix) mirrored() error {
	workers, err := m.client.Workers(m.t.Context(), client.WorkerFilter{Retired: true})
	for _, w := range workers {
		if w.State != "live" && w.State != "stopped" && w.State != "retired" {
			return fmt.Errorf("worker %s is %s", w.WorkerName, w.State)
		}
		text, err := os.ReadFile(filepath.Join(m.dir, "workers", "instances", "worker_"+w.WorkerSerial+".json"))
		if err != nil || !strings.Contains(string(text), fmt.Sprintf("%q: %q", "state", w.State)) {
			return fmt.Errorf("the file of worker %s does not say that it is %s; %w", w.WorkerName, w.State, err)
		}
	}
	return err
}

// die runs the operation until the host has died over it.
func (m *matrix) die(op operation) error {
	var last error
	// The record's files that go depend on its size: some points come with every
	// other run.
	for _, limit := range []time.Duration{1500 * time.Millisecond, patience} {
		if err := errors.Join(op.ready(m), m.atRest()); err != nil {
			last = fmt.Errorf("make ready: %w", err)
			break
		}
		last = op.run(m)
		if dead, err := m.died(limit); dead {
			return err
		}
		if last != nil {
			break
		}
	}
	m.kill()
	return fmt.Errorf("the host did not come to the point: %w", errors.Join(errors.New("it lived on"), last))
}

// recovery is a start that dies over what an earlier host left.
type recovery struct {
	name string
	of   string // the operation that was killed
	at   string // the point where
}

// allStarts lists the points of a start after a crash and dies at each: the
// start after that has to bring it to an end.
func (m *matrix) allStarts(r recovery) {
	m.t.Helper()
	began := time.Now()
	trace := filepath.Join(m.t.TempDir(), "trace")
	op := operationOf(r.of)
	at := r.at + "#1@" + op.first
	m.kill()
	m.next(at)
	if err := m.die(op); err != nil {
		m.t.Fatalf("%s: %v\n%s", r.name, err, m.log)
	}
	m.boot([]string{"DALS_FAILPOINT_TRACE=" + trace})
	points := numbered(quiet(m.t, trace))
	if end := slices.IndexFunc(points, func(p string) bool { return strings.HasPrefix(p, "control/") }); end >= 0 {
		points = points[:end]
	}
	if m.listed(r.name, points); *update {
		return
	}
	m.kill()
	m.next(at)
	for _, point := range points {
		err := m.die(op)
		if err == nil && m.spawn([]string{"DALS_FAILPOINT=" + point}) {
			// Ready: the point comes in the background, or not at all.
			var dead bool
			if dead, err = m.died(patience); !dead {
				err = m.missed(point)
			}
		} else if err == nil {
			_, err = m.died(patience)
		}
		m.next(at)
		m.judge(r.name, point, errors.Join(err, m.sound()))
	}
	m.table.took(r.name, m.launcher, time.Since(began))
}
