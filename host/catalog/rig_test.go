package catalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

const roleEnv = "CATALOG_TEST_ROLE"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain is the test plugin without a script, built when it is first asked for.
var plain = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "catalog-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "plugin")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "./testdata/plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build test plugin: %w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// script is what the test plugin is told: see testdata/plugin.
type script struct {
	Do      string `json:",omitempty"`
	Line    string `json:",omitempty"`
	Version uint   `json:",omitempty"`
	Cookie  string `json:",omitempty"`
	Type    *workerv1.TypeDescriptor
}

func describing(name, version, family string) *workerv1.TypeDescriptor {
	return &workerv1.TypeDescriptor{
		Name: name, Version: version, Family: family, Summary: "tests the catalog",
		ConfigSchema: []byte(`{"type":"object","properties":{"greeting":{"type":"string","default":"hello"}}}`),
		Tasks: []*workerv1.TaskKind{{
			Kind: name + ".echo", Summary: "says it again",
			InputSchema: []byte(`{"type":"object"}`), OutputSchema: []byte(`{"type":"object"}`),
		}},
	}
}

// plug makes a plugin that follows s.
func plug(t *testing.T, s script) []byte {
	t.Helper()
	if s.Type == nil {
		s.Type = describing("goat", "1.0.0", "GT")
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	base, err := plain()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(base, []byte("\n"), text)
}

func good(t *testing.T, name, version, family string) []byte {
	t.Helper()
	return plug(t, script{Type: describing(name, version, family)})
}

// memory is a Registry that a test can break.
type memory struct {
	mu       sync.Mutex
	verdicts map[string]Verdict
	claims   []Claim
	broken   error
}

func (m *memory) Verdicts(context.Context) ([]Verdict, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.verdicts)), m.broken
}

func (m *memory) Claims(context.Context) ([]Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.claims), m.broken
}

func (m *memory) SaveVerdict(_ context.Context, v Verdict) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	if (v.Descriptor == nil) != (v.Reason != "" && v.Fix != "") {
		return fmt.Errorf("odd verdict: %+v", v)
	}
	m.verdicts[v.Digest] = v
	return nil
}

func (m *memory) SaveClaim(_ context.Context, c Claim) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	if _, ok := m.verdicts[c.Digest]; !ok {
		return errors.New("claim before its verdict")
	}
	for _, old := range m.claims {
		if old.Type == c.Type && old.Version == c.Version {
			return errors.New("claimed twice")
		}
	}
	m.claims = append(m.claims, c)
	return nil
}

func (m *memory) breakWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// nextUID gives each prober uids of its own, below those of a real host.
var nextUID atomic.Int32

// rig is a running catalog with a real prober.
type rig struct {
	t        *testing.T
	dir      string // plugins
	data     string
	uid      int
	hostID   string // where its plugins are probed in containers
	registry Registry
	catalog  *Catalog
	stop     func()
	log      logged // of the prober

	mu     sync.Mutex
	inUse  map[string]bool
	events []Event
}

func newRig(t *testing.T) *rig {
	t.Helper()
	data := t.TempDir()
	r := &rig{
		t: t, dir: filepath.Join(data, "plugins"), data: data,
		uid:      60000 + int(nextUID.Add(probesAtOnce)),
		registry: &memory{verdicts: map[string]Verdict{}},
		inUse:    map[string]bool{},
	}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// As a host's data folder: the plugin's uid cannot enter it.
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

func startRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.start()
	return r
}

func (r *rig) prober() *PluginProber {
	r.t.Helper()
	p, err := NewProber(ProberConfig{Dir: filepath.Join(r.data, "probe"), UID: r.uid, Logger: hclog.New(&hclog.LoggerOptions{Output: &r.log, Level: hclog.Debug})})
	if err != nil {
		r.t.Fatal(err)
	}
	p.patience = limit // for a plugin that does all that it should
	return p
}

func (r *rig) start() { r.startWith(r.prober()) }

func (r *rig) startWith(p Prober) {
	r.t.Helper()
	c, err := New(Config{
		Dirs: []string{r.dir}, StoreDir: filepath.Join(r.data, "store"),
		Prober: p, Registry: r.registry,
		InUse: func(name, version string) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.inUse[name+" "+version]
		},
		OnEvent: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.catalog = c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(r.stop)
	select {
	case <-c.Ready():
	case <-time.After(limit):
		r.t.Fatal("the catalog does not become ready")
	}
}

func (r *rig) use(name, version string, used bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inUse[name+" "+version] = used
}

// states are those that a path has been told to be in, in order.
func (r *rig) states(path string) []State {
	r.mu.Lock()
	defer r.mu.Unlock()
	var states []State
	for _, e := range r.events {
		if e.Plugin.Path == path {
			states = append(states, e.Plugin.State)
		}
	}
	return states
}

// drop puts a whole file into the plugins folder, as mv does.
func (r *rig) drop(name string, content []byte) string {
	r.t.Helper()
	aside := filepath.Join(r.data, name)
	if err := os.WriteFile(aside, content, 0o755); err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(r.dir, name)
	if err := os.Rename(aside, path); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) plugin(path string) Plugin {
	for _, p := range r.catalog.Plugins() {
		if p.Path == path {
			return p
		}
	}
	return Plugin{}
}

// await waits until a plugin is in a state.
func (r *rig) await(path string, s State) Plugin {
	r.t.Helper()
	eventually(r.t, func() error {
		if p := r.plugin(path); p.State != s {
			return fmt.Errorf("%s is %q (%s), want %q", filepath.Base(path), p.State, p.Reason, s)
		}
		return nil
	})
	return r.plugin(path)
}

// limit is how long a test waits for what must come.
const limit = time.Minute

// eventually polls until check is content.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at a condition
	}
}

// executions counts how often the prober has executed a binary.
func (r *rig) executions(binary []byte) func() int {
	sum := sha256.Sum256(binary)
	line := []byte("plugin is executed: binary=" + filepath.Join(r.data, "store", "sha256", hex.EncodeToString(sum[:])))
	return func() int { return bytes.Count(r.log.bytes(), line) }
}

// logged is a log that is read while it is written.
type logged struct {
	mu   sync.Mutex
	text []byte
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *logged) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.text)
}

// processesOf lists the living processes of a uid.
func processesOf(t *testing.T, uid int) []string {
	t.Helper()
	statuses, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range statuses {
		status, err := os.ReadFile(path)
		// Zombies have ended; who reaps them is the machine's business.
		if err == nil && isOf(uid, status) {
			found = append(found, path)
		}
	}
	return found
}

// leftNothing checks that no probe left a process or a socket.
func (r *rig) leftNothing() {
	r.t.Helper()
	for i := range probesAtOnce {
		if found := processesOf(r.t, r.uid+i); len(found) > 0 {
			r.t.Errorf("processes of uid %d are left: %v", r.uid+i, found)
		}
	}
	if left, err := os.ReadDir(filepath.Join(r.data, "probe")); err != nil || len(left) > 0 {
		r.t.Errorf("the probes left %v, %v", left, err)
	}
}
