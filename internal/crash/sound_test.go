package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	dals "github.com/dals-host/dals-host/host"
	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/sdk/client"
)

// sound checks, some time after a start, that every worker that there is is
// whole, that nothing is left of those that are not, and that the record tells
// the truth.
func (m *matrix) sound() error { return m.soundWithin(2 * patience) }

func (m *matrix) soundWithin(limit time.Duration) error {
	if err := within(limit, m.settled); err != nil {
		return err
	}
	workers, err := m.client.Workers(m.t.Context(), client.WorkerFilter{})
	if err != nil {
		return err
	}
	for _, w := range workers {
		if w.State != "live" {
			continue
		}
		_, differences, err := dals.VerifyWorker(m.t.Context(), m.dir, w.WorkerSerial)
		if err != nil || len(differences) > 0 {
			return fmt.Errorf("verify %s: %q, %w", w.WorkerName, differences, err)
		}
		if err := m.answers(w); err != nil {
			return fmt.Errorf("worker %s: %w", w.WorkerName, err)
		}
	}
	return nil
}

// answers asks a worker what it is, and how often it was asked.
func (m *matrix) answers(w client.Worker) error {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	ask := m.ask
	if ask == nil {
		ask = m.send
	}
	result, err := ask(ctx, w.WorkerName)
	if err != nil {
		return err
	}
	var about struct {
		Version, Told string
		Calls         int64
	}
	if err := json.Unmarshal(result, &about); err != nil {
		return err
	}
	m.calls[w.WorkerSerial]++
	if about.Version != w.TypeVersion || about.Told != w.TypeVersion || about.Calls != m.calls[w.WorkerSerial] {
		return fmt.Errorf("it says %+v; the host says version %s, and %d calls", about, w.TypeVersion, m.calls[w.WorkerSerial])
	}
	return nil
}

// send asks by the host's client.
func (m *matrix) send(ctx context.Context, name string) (json.RawMessage, error) {
	result, err := m.client.Send(ctx, client.SendRequest{Worker: name, Kind: "chameleon.about", Input: struct{}{}})
	return result.Result, err
}

// state is what the host, the registry and the record say at one moment.
type state struct {
	workers map[string]client.Worker // by serial, without the retired
	entries []record.Entry
	given   map[string]bool // every serial that the record knows
	warm    map[string]bool // the serials that are kept warm
}

func (m *matrix) settled() error {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	list, err := m.client.Workers(ctx, client.WorkerFilter{})
	if err != nil {
		return fmt.Errorf("list workers: %w", err)
	}
	s := &state{workers: map[string]client.Worker{}, given: map[string]bool{}}
	for _, w := range list {
		s.workers[w.WorkerSerial] = w
	}
	if err := m.healthy(s); err != nil { // the cheapest, and the last to come
		return err
	}
	if s.entries, err = m.entries(ctx); err != nil {
		return err
	}
	for _, e := range s.entries {
		if e.Worker != nil {
			s.given[string(e.Worker.Serial)] = true
		}
	}
	if s.warm, err = m.keptWarm(ctx); err != nil {
		return err
	}
	checks := []func(*state) error{truthful, dense, m.processes, m.files, m.listeners}
	if m.launcher == "containerd" {
		checks = append(checks, m.boxes)
	}
	for _, check := range checks {
		if err := check(s); err != nil {
			return err
		}
	}
	if _, err = dals.VerifyVault(ctx, m.dir); err != nil {
		return fmt.Errorf("verify vault: %w", err)
	}
	return nil
}

// entries reads the record from the data folder.
func (m *matrix) entries(ctx context.Context) ([]record.Entry, error) {
	r, err := registry.OpenReadOnly(ctx, filepath.Join(m.dir, "registry.db"))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var entries []record.Entry
	for g, err := range r.Groups(ctx, 0) {
		if err != nil {
			return nil, err
		}
		if g.First != uint64(len(entries)) {
			return nil, fmt.Errorf("the log is not dense: group at %d, want %d", g.First, len(entries))
		}
		for _, line := range g.Entries {
			e, err := record.Decode(line)
			if err != nil {
				return nil, err
			}
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// healthy: a worker is live and reports so, or somebody has stopped it.
func (m *matrix) healthy(s *state) error {
	for _, w := range s.workers {
		if w.State != "stopped" && (w.State != "live" || !w.VaultIntegrity) {
			return fmt.Errorf("worker %s is %s: %s %s", w.WorkerName, w.State, w.StateReason, w.VaultFault)
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", w.Port))
		if err != nil {
			return fmt.Errorf("port of %s: %w", w.WorkerName, err)
		}
		_ = resp.Body.Close()
		if want := map[bool]int{true: 200, false: 503}[w.State == "live"]; resp.StatusCode != want {
			return fmt.Errorf("worker %s is %s, its port says %s", w.WorkerName, w.State, resp.Status)
		}
	}
	return nil
}

// truthful: the record tells of the workers that there are, as what they are,
// and of no others.
func truthful(s *state) error {
	told := map[string]*record.WorkerFields{}
	stopped := map[string]bool{}
	for _, e := range s.entries {
		if e.Worker == nil {
			continue
		}
		serial := string(e.Worker.Serial)
		switch e.Kind {
		case record.Forge:
			if told[serial] != nil {
				return fmt.Errorf("%s was forged twice", serial)
			}
			told[serial] = e.Worker
		case record.Upgrade:
			told[serial] = e.Worker
		case record.Retire:
			delete(told, serial)
		case record.WorkerStopped, record.WorkerStarted:
			stopped[serial] = e.Kind == record.WorkerStopped
		case record.Void:
			if told[serial] != nil {
				return fmt.Errorf("%s was forged and is void", serial)
			}
		}
	}
	for serial, w := range s.workers {
		f := told[serial]
		if f == nil {
			return fmt.Errorf("the record does not tell of %s (%s)", serial, w.State)
		}
		if f.Version != w.TypeVersion || f.ManifestSHA256 != w.ManifestSHA256 || f.Port != w.Port || stopped[serial] != (w.State == "stopped") {
			return fmt.Errorf("the record tells of %s %+v (stopped: %t), it is %+v", serial, f, stopped[serial], w)
		}
		delete(told, serial)
	}
	if len(told) > 0 {
		return fmt.Errorf("the record tells of workers that are not there: %q", slices.Collect(maps.Keys(told)))
	}
	return nil
}

// dense: every serial and every ledger code up to the last was given once, to a
// worker or to the void.
func dense(s *state) error {
	given := map[string]int{}
	most := 0
	for _, e := range s.entries {
		if e.Kind != record.Forge && e.Kind != record.Void {
			continue
		}
		var n int
		if _, err := fmt.Sscanf(string(e.Worker.Ledger), "A1-%d", &n); err != nil {
			return fmt.Errorf("ledger code %q: %w", e.Worker.Ledger, err)
		}
		most = max(most, n)
		given[string(e.Worker.Ledger)]++
		given[string(e.Worker.Serial)]++
	}
	for number, times := range given {
		if times != 1 {
			return fmt.Errorf("%s was given %d times", number, times)
		}
	}
	if len(given) != 2*most {
		return fmt.Errorf("%d numbers were given, ledger codes up to %d", len(given), most)
	}
	return nil
}

var serialForm = regexp.MustCompile(`DMN-[A-Z]{2}-\d+-[0-9A-Fa-f]{8}-[0-9A-Fa-f]{5}`)

// processes: each live worker has one process, and under containerd a place in one
// shim's group; nothing else runs for the host.
func (m *matrix) processes(s *state) error {
	running, shims := map[string]int{}, m.members()
	for pid, text := range processes() {
		serial := serialForm.FindString(text)
		switch {
		case (s.given[serial] || s.warm[serial]) && strings.Contains(text, "containerd-shim"):
			return fmt.Errorf("process %d still starts or deletes something: %q", pid, text)
		case s.given[serial] || s.warm[serial]:
			running[serial]++
		case strings.Contains(text, m.id) && serial != "":
			return fmt.Errorf("process %d is of a worker that was never there: %q", pid, text)
		}
	}
	for serial, w := range s.workers {
		want := 0
		if w.State == "live" {
			want = 1
		}
		if running[serial] != want {
			return fmt.Errorf("worker %s is %s and has %d processes", w.WorkerName, w.State, running[serial])
		}
		if m.launcher == "containerd" && shims[serial] != want {
			return fmt.Errorf("worker %s is %s and is in %d shims' groups", w.WorkerName, w.State, shims[serial])
		}
		delete(running, serial)
		delete(shims, serial)
	}
	for serial := range s.warm {
		if running[serial] != 1 || shims[serial] != 1 {
			return fmt.Errorf("%s is kept warm and has %d processes and is in %d groups", serial, running[serial], shims[serial])
		}
		delete(running, serial)
		delete(shims, serial)
	}
	if len(running)+len(shims) > 0 {
		return fmt.Errorf("processes left: %v, in groups: %v", running, shims)
	}
	return nil
}

// members counts the groups that containers are in.
func (m *matrix) members() map[string]int {
	members := map[string]int{}
	paths, _ := filepath.Glob(filepath.Join(m.dir, "containerd", "state", shim.Folder, "*", "DMN-*"))
	for _, path := range paths {
		members[filepath.Base(path)]++
	}
	return members
}

// processes maps each process that is no zombie to its arguments and cgroups.
func processes() map[int]string {
	all := map[int]string{}
	dirs, _ := os.ReadDir("/proc")
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(dir.Name(), "%d", &pid); err != nil {
			continue
		}
		at := filepath.Join("/proc", dir.Name())
		stat, _ := os.ReadFile(at + "/stat")
		if i := strings.LastIndexByte(string(stat), ')'); i < 0 || strings.HasPrefix(string(stat[i:]), ") Z") {
			continue
		}
		args, _ := os.ReadFile(at + "/cmdline")
		groups, _ := os.ReadFile(at + "/cgroup")
		all[pid] = string(args) + " " + string(groups)
	}
	return all
}

// files: the data folder has what belongs to the workers that there are, and
// nothing unfinished.
func (m *matrix) files(s *state) error {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	names := func(dir string) []string {
		list, err := os.ReadDir(filepath.Join(m.dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			fault("%v", err)
		}
		all := make([]string, len(list))
		for i, e := range list {
			all[i] = e.Name()
		}
		return all
	}
	const unfinished = ".unfinished"
	for _, dir := range []string{"workers/.stage", "workers/.aside", "record/" + unfinished, "store/" + unfinished, "process/" + unfinished, "containerd/" + unfinished} {
		if left := names(dir); len(left) > 0 {
			fault("left in %s: %q", dir, left)
		}
	}
	if kept := names("workers/.warm"); !slices.Equal(kept, slices.Sorted(maps.Keys(s.warm))) {
		fault("folders kept warm: %q", kept)
	}
	if keys := names("keys"); !slices.Equal(keys, []string{"host.seed", "operator.key"}) {
		fault("keys: %q", keys)
	}
	for _, name := range names("workers/instances") {
		serial, isMirror := strings.CutPrefix(strings.TrimSuffix(name, ".json"), "worker_")
		_, alive := s.workers[serial]
		if !alive && (!isMirror || !s.given[serial]) {
			fault("folder of an unknown worker: %s", name)
		}
	}
	for serial, w := range s.workers {
		if _, err := os.Stat(filepath.Join(m.dir, "workers/instances", serial, "certs/worker.key")); err != nil {
			fault("%v", err)
		}
		if _, err := os.Lstat(filepath.Join(m.dir, "workers/instances", serial, "run/worker.sock")); err != nil && w.State == "live" {
			fault("%v", err)
		}
	}
	for _, name := range names("process") {
		if _, alive := s.workers[strings.TrimSuffix(strings.TrimSuffix(name, ".json"), ".lock")]; !alive && name != unfinished {
			fault("left by the launcher: %s", name)
		}
	}
	for dir, begun := range map[string]string{"containerd/rootfs": ".new-", "store/sha256": ".incoming-"} {
		for _, name := range names(dir) {
			if strings.HasPrefix(name, begun) {
				fault("unfinished: %s/%s", dir, name)
			}
		}
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), m.dir) {
		fault("mounts in the data folder, or %v", err)
	}
	if len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

// listeners: the host listens on the ports of its workers and on no others.
func (m *matrix) listeners(s *state) error {
	sockets := map[string]int{} // inode to port
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			const address, status, inode, listening = 1, 3, 9, "0A"
			fields := strings.Fields(line)
			if len(fields) <= inode || fields[status] != listening {
				continue
			}
			var port int
			if _, err := fmt.Sscanf(fields[address][strings.LastIndexByte(fields[address], ':')+1:], "%X", &port); err != nil {
				return err
			}
			sockets["socket:["+fields[inode]+"]"] = port
		}
	}
	have := map[int]bool{}
	dir := fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid)
	descriptors, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range descriptors {
		link, _ := os.Readlink(filepath.Join(dir, d.Name()))
		if port, ok := sockets[link]; ok {
			have[port] = true
		}
	}
	want := map[int]bool{}
	for _, w := range s.workers {
		want[w.Port] = true
	}
	if !maps.Equal(have, want) {
		return fmt.Errorf("the host listens on %v, its workers have %v", have, want)
	}
	return nil
}
