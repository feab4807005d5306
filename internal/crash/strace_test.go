package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryDurableWriteHasPoints watches a host by strace, from its first start
// to its going down: whatever it syncs, renames, links or deletes in its data
// folder, and whatever it starts that is to stay, lies between the two points of
// the part that does it. Then it drops each of these points in turn, and has to
// notice, but for those of inside. The points of steps, of calls to containerd
// and of the launchers are in the lists that TestMatrix goes by.
func TestEveryDurableWriteHasPoints(t *testing.T) {
	for _, launcher := range []string{"process", "containerd"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			events := watched(t, launcher)
			durable, faults := uncovered(events, "")
			for _, f := range faults {
				t.Errorf("no point stands around %s", f)
			}
			guards := map[string]int{}
			for _, e := range events {
				if point, when := cut(e.point); when == "before" && isGuard(point) {
					guards[point] = 0
				}
			}
			for point := range guards {
				_, more := uncovered(events, point)
				guards[point] = len(more) - len(faults)
				if _, other := inside[point]; (guards[point] == 0) != other {
					t.Errorf("without %s, %d calls have no point around them", point, guards[point])
				}
			}
			t.Logf("%d durable calls, %d points around them; calls that only this one stands around: %v", durable, len(guards), guards)
			if durable < 50 {
				t.Errorf("%d durable calls: this proves nothing", durable)
			}
		})
	}
}

// inside are the points around nothing that is seen here, or that no other point
// stands around; the lists have them.
var inside = map[string]string{
	"record/checkpoint": "record/files and record/folders stand in it",
}

// spawns, in the place of a path, is what starts and stays: a worker, and
// containerd.
const spawns = "(spawn)"

// areas are the beginnings of the names of the points that have to stand around
// what is done to the files below a name in the data folder.
var areas = map[string][]string{
	"":            {"registry/", "keyring/"}, // the folder itself
	"registry.db": {"registry/"},
	"keys":        {"keyring/"},
	"record":      {"record/"},
	"workers":     {"stage/"},
	"store":       {"catalog/"},
	"process":     {"process/re"}, // record, remove
	"containerd":  {"containerd/config", "containerd/rootfs", "containerd/leftovers", "containerd/remove"},
	spawns:        {"process/spawn", "containerd/spawn"},
}

// stands says whether a point has to do with what is done below a name.
func stands(point, top string) bool {
	return slices.ContainsFunc(areas[top], func(begin string) bool { return strings.HasPrefix(point, begin) })
}

// isGuard says whether a point is one that is looked for here.
func isGuard(point string) bool {
	for top := range areas {
		if stands(point, top) {
			return true
		}
	}
	return false
}

// scrap is what may be deleted between any two points: half of something, which
// the next host deletes where it finds it, a socket, and the launcher's folder
// once it is empty.
var scrap = regexp.MustCompile(`^(probes/.*|containerd/rootfs/\.new-.*|keys/\.new-\d+|host\.sock|process)$`)

func area(point string) string {
	a, _, _ := strings.Cut(point, "/")
	return a
}

func cut(point string) (name, when string) {
	i := strings.LastIndexByte(point, '/')
	return point[:max(i, 0)], point[i+1:]
}

// event is a line of strace: a point that was hit, or a durable call on a file
// of the data folder.
type event struct {
	point string
	path  string // relative to the data folder
	text  string
}

// uncovered counts the durable calls, and names those around which none of their
// part's points stands, without the points of the name dropped.
func uncovered(events []event, dropped string) (durable int, faults []string) {
	open := map[string]int{} // by name
	for _, e := range events {
		if name, when := cut(e.point); e.point != "" {
			if name != dropped {
				open[name] += map[string]int{"before": 1, "after": -1}[when]
			}
			continue
		}
		durable++
		top, _, _ := strings.Cut(e.path, "/")
		if strings.HasPrefix(top, "registry.db") {
			top = "registry.db"
		}
		covered := false
		for point, n := range open {
			covered = covered || n > 0 && stands(point, top)
		}
		if !covered {
			faults = append(faults, e.text)
		}
	}
	for point, n := range open {
		if n != 0 && isGuard(point) { // it would stand around all that came later
			faults = append(faults, fmt.Sprintf("%s, which came before %d times more than after", point, n))
		}
	}
	return durable, faults
}

// watched runs a host under strace through everything that it is killed over.
func watched(t *testing.T, launcher string) []event {
	t.Helper()
	h := newHost(t, launcher)
	h.install(versions)
	out, trace := filepath.Join(t.TempDir(), "strace"), filepath.Join(t.TempDir(), "trace")
	h.boot([]string{"DALS_FAILPOINT_TRACE=" + trace}, "strace", "-f", "-b", "execve", "-y", "-s", "200", "-o", out, "-e", "signal=none",
		"-e", "trace=fsync,fdatasync,sync,syncfs,sync_file_range,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,execve,write")
	h.registered(len(versions))
	m := &matrix{host: h}
	for _, op := range operations {
		if err := op.ready(m); err != nil {
			t.Fatalf("%s: %v\n%s", op.name, err, h.log)
		}
		if op.name == "start" && launcher == "containerd" {
			m.leaveBundle()
		}
		if op.name == "down" {
			quiet(t, trace)
		}
		if err := op.run(m); err != nil {
			t.Fatalf("%s: %v\n%s", op.name, err, h.log)
		}
	}
	<-h.ended
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return parse(string(text), h.dir, trace)
}

// leaveBundle leaves of nora what a start that was cut off leaves.
func (m *matrix) leaveBundle() {
	m.t.Helper()
	w, _, err := m.nora()
	if err == nil {
		err = os.MkdirAll(filepath.Join(m.dir, "containerd/state/io.containerd.runtime.v2.task/dals-"+m.id, w.WorkerSerial), 0o700)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

var (
	pointHit  = regexp.MustCompile(`^\d+ +write\(\d+<([^>]+)>, "([^"]+)\\n"`)
	onFile    = regexp.MustCompile(`^\d+ +(?:fsync|fdatasync|syncfs|sync_file_range)\(\d+<([^>]+)>`)
	twoNames  = regexp.MustCompile(`^\d+ +(?:renameat2?|linkat)\((?:\w+<([^>]*)>), "[^"]*", (?:\w+<([^>]*)>), "([^"]*)"`)
	plainName = regexp.MustCompile(`^\d+ +(?:rename|link)\("[^"]*", "([^"]*)"`)
	deleted   = regexp.MustCompile(`^\d+ +(?:unlinkat\(\w+<([^>]*)>, |unlink\(|rmdir\()"([^"]*)"`)
	started   = regexp.MustCompile(`^\d+ +execve\("[^"]+", \["(?:dals-worker-\S+ DMN-|[^"]*", "--config")`)
)

// parse keeps what matters of strace's lines, in their order. A call that
// another thread's line interrupts stands where it began.
func parse(text, dir, trace string) (events []event) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if hit := pointHit.FindStringSubmatch(line); hit != nil {
			if hit[1] == trace {
				events = append(events, event{point: hit[2]})
			}
			continue
		}
		if strings.Contains(line, ") = -1 E") {
			continue // nothing was done
		}
		below, err := filepath.Rel(dir, changed(line, dir))
		if err == nil && !strings.HasPrefix(below, "..") {
			events = append(events, event{path: strings.TrimPrefix(below, "."), text: line})
		}
	}
	return events
}

// changed is the file that a call makes durable, renames, links or deletes; spawns,
// below dir, for one that starts what stays; and nothing for any other.
func changed(line, dir string) string {
	if started.MatchString(line) {
		return filepath.Join(dir, spawns)
	}
	if strings.Contains(line, " sync(") {
		return dir
	}
	if call := deleted.FindStringSubmatch(line); call != nil {
		path := at(call[1], call[2])
		if below, err := filepath.Rel(dir, path); err == nil && scrap.MatchString(below) {
			return ""
		}
		return path
	}
	if call := twoNames.FindStringSubmatch(line); call != nil {
		return at(call[2], call[3])
	}
	for _, call := range []*regexp.Regexp{onFile, plainName} {
		if found := call.FindStringSubmatch(line); found != nil {
			return found[1]
		}
	}
	return ""
}

// at is a path as a call gives it: from a folder, unless it is absolute.
func at(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

// TestParse: what strace prints is read as it is meant.
func TestParse(t *testing.T) {
	t.Parallel()
	events := parse(`11 write(4</t/trace>, "stage/sync/before\n", 18) = 18
12  fsync(9</d/workers/.stage/x> <unfinished ...>
11  write(2</t/log>, "fsync\n", 6) = 6
12  <... fsync resumed>)              = 0
11  fsync(2</elsewhere>) = 0
11  renameat(5</d/workers>, ".stage/x", 5</d/workers>, "instances/x") = 0
11  rename("/d/a", "/d/b") = 0
11  fsync(9</d>) = 0
11  unlinkat(5</d/workers/.aside>, "x", 0) = -1 EISDIR (Is a directory)
11  unlinkat(5</d/workers/.aside>, "x", AT_REMOVEDIR) = 0
11  unlink("/d/host.sock") = 0
14  execve("/proc/self/fd/5", ["dals-worker-x DMN-1"], 0x1 /* 2 vars */ <detached ...>
14  execve("/proc/self/fd/5", ["dals-worker"], 0x1 /* 2 vars */ <detached ...>
`, "/d", "/t/trace")
	var got []string
	for _, e := range events {
		got = append(got, e.point+e.path)
	}
	if want := []string{"stage/sync/before", "workers/.stage/x", "workers/instances/x", "b", "", "workers/.aside/x", spawns}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	if n, faults := uncovered(events, ""); n != 6 || len(faults) != 4 || !strings.Contains(faults[3], "more than after") {
		t.Errorf("%d durable calls, uncovered %q", n, faults)
	}
	if _, faults := uncovered(events, "stage/sync"); len(faults) != 6 {
		t.Errorf("without the point: uncovered %q", faults)
	}
}
