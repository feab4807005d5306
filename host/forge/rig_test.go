package forge

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// rig is a forge on a real data folder: real registry, stage, keys, ports. Only
// what runs workers is a fake, so that it can fail on demand; internal/e2e runs
// the same with real launchers.
type rig struct {
	t        *testing.T
	dir      string
	registry *registry.Registry
	stage    *stage.Store
	keys     *keyring.Keyring
	pool     *ports.Pool
	launcher *fakeLauncher
	forge    *Forge

	mu       sync.Mutex
	attached map[worker.Serial]bool
	kept     map[worker.Serial]bool
	held     map[worker.Serial]*ports.Listener
	bound    []*ports.Listener
	version  string            // the type's default version; empty for 1.2.3
	digest   string            // of the type's plugin; empty for that of 1.2.3
	others   map[string]string // digests of the type's other versions
	asks     []string          // the type's capabilities
	noBeat   error             // what AwaitHeartbeat answers
	onBeat   func()            // what it does first
	onLookup func()            // what Lookup does first
	onDrain  func(context.Context)
	silent   bool // it answers when its context ends
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), launcher: &fakeLauncher{running: map[worker.Serial]bool{}, warm: map[worker.Serial]launch.Spec{}, dirs: map[worker.Serial]string{}, images: map[worker.Serial]string{}}}
	r.open(true)
	return r
}

// open opens the data folder as a new host would.
func (r *rig) open(first bool) {
	r.t.Helper()
	var err error
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.registry, err = registry.Open(r.t.Context(), registry.Config{Path: filepath.Join(r.dir, "registry.db")})
	must(err)
	r.stage, err = stage.Open(stage.Config{Dir: filepath.Join(r.dir, "workers")})
	must(err)
	r.keys, err = keyring.Open(keyring.Config{Dir: filepath.Join(r.dir, "keys"), First: first})
	must(err)
	r.pool, err = ports.New(ports.Config{Logger: hclog.NewNullLogger()})
	must(err)
	authority, err := identity.NewAuthority(r.keys.HostID(), r.keys.CA().Private())
	must(err)
	r.attached, r.kept, r.held = map[worker.Serial]bool{}, map[worker.Serial]bool{}, map[worker.Serial]*ports.Listener{}
	r.forge = New(Config{
		Types: r, Registry: r.registry, Stage: r.stage, Ports: r, Keys: r.keys, Authority: authority,
		Launcher: r.launcher, Sessions: r, Keeper: keeper{r}, Checkpoint: r.checkpoint,
		Changed: func(worker.Serial) {}, OwnUID: os.Geteuid(), UIDs: UIDRange{70_000, 70_999}, Own: []string{r.dir},
		Spec: func(w worker.Worker) launch.Spec {
			return launch.Spec{Serial: w.Serial, Dir: r.stage.Dir(w.Serial), Image: launch.Image{Digest: w.PluginDigest}, Limits: w.Limits}
		},
		Logger: hclog.NewNullLogger(),
	})
	r.t.Cleanup(r.close)
}

func (r *rig) close() {
	for _, l := range r.bound {
		_ = l.Close()
	}
	_ = r.registry.Close()
	_ = r.stage.Close()
}

// die ends the host without a word and starts another on its folder.
func (r *rig) die() {
	r.t.Helper()
	r.close()
	r.open(false)
}

func (r *rig) checkpoint() ([]byte, uint64) {
	return []byte("a note"), 0
}

func (r *rig) Lookup(_ context.Context, name, version string) (Type, error) {
	if r.onLookup != nil {
		r.onLookup()
	}
	current, digest := cmp.Or(r.version, "1.2.3"), cmp.Or(r.digest, fmt.Sprintf("%064x", 7))
	if other, ok := r.others[version]; ok {
		current, digest = version, other
	}
	if name != "template" || version != "" && version != current {
		return Type{}, fmt.Errorf("worker type '%s' is not registered: %w", name, worker.ErrNotFound)
	}
	return Type{
		Descriptor: &workerv1.TypeDescriptor{
			Name: "template", Version: current, Family: "TP",
			ConfigSchema: []byte(`{"type":"object","properties":{"greeting":{"type":"string","default":"hello"}},"additionalProperties":false}`),
			Capabilities: r.asks,
		},
		Image: launch.Image{Digest: digest, Path: os.Args[0]},
	}, nil
}

func (r *rig) Attach(w worker.Worker, _ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attached[w.Serial] = true
}

func (r *rig) Drain(ctx context.Context, _ worker.Serial) {
	if r.onDrain != nil {
		r.onDrain(ctx)
	}
}

func (r *rig) Detach(_ context.Context, s worker.Serial) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.attached, s)
}

func (r *rig) AwaitHeartbeat(ctx context.Context, s worker.Serial, _ time.Time) error {
	if r.onBeat != nil {
		r.onBeat()
	}
	if r.silent || r.launcher.exit != nil || r.launcher.isBad(s) {
		<-ctx.Done()
		return ctx.Err()
	}
	return errors.Join(r.noBeat, ctx.Err())
}

// keeper takes note of who is kept.
type keeper struct{ r *rig }

func (k keeper) Keep(w worker.Worker) {
	k.r.mu.Lock()
	defer k.r.mu.Unlock()
	k.r.kept[w.Serial] = true
}

func (k keeper) Release(s worker.Serial) {
	k.r.mu.Lock()
	defer k.r.mu.Unlock()
	delete(k.r.kept, s)
}

func (r *rig) Bind(ctx context.Context) (*ports.Listener, error) {
	l, err := r.pool.Bind(ctx, func(port int) bool {
		taken, err := r.registry.PortTaken(ctx, port)
		return taken || err != nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.bound = append(r.bound, l)
	}
	return l, err
}

func (r *rig) Assign(s worker.Serial, l *ports.Listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[s] = l
}

func (r *rig) Release(s worker.Serial) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.held[s]; l != nil {
		_ = l.Close()
	}
	delete(r.held, s)
}

// fakeLauncher keeps what it was told to create and start.
type fakeLauncher struct {
	launch.Launcher // what is not faked is not called

	mu      sync.Mutex
	running map[worker.Serial]bool
	warm    map[worker.Serial]launch.Spec
	cold    error // what Warm answers
	stays   error // what Remove answers
	dirs    map[worker.Serial]string
	images  map[worker.Serial]string // digests
	exit    *launch.Exit             // what Wait tells at once, if anything
	says    string                   // what a started worker logs
	name    string                   // empty for fake
	stuck   error                    // what Stop answers
	bad     string                   // digest of a plugin that ends as soon as it is started
	lingers bool                     // a worker takes all the grace that it gets
}

func (l *fakeLauncher) Wait(ctx context.Context, s worker.Serial) (launch.Exit, error) {
	if l.exit != nil {
		return *l.exit, nil
	}
	if l.isBad(s) {
		return launch.Exit{Code: 7}, nil
	}
	<-ctx.Done()
	return launch.Exit{}, ctx.Err()
}

func (l *fakeLauncher) isBad(s worker.Serial) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad != "" && l.images[s] == l.bad
}

func (l *fakeLauncher) Name() string { return cmp.Or(l.name, "fake") }

func (l *fakeLauncher) Prepare(ctx context.Context, i launch.Image) (string, error) {
	return l.ImageDigest(ctx, i)
}

func (*fakeLauncher) ImageDigest(_ context.Context, i launch.Image) (string, error) {
	return "sha256:" + strings.Repeat(i.Digest[:2], 32), nil
}

func (l *fakeLauncher) Create(_ context.Context, s launch.Spec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Stat(filepath.Join(s.Dir, "worker_manifest.sig")); err != nil {
		return err
	}
	if _, known := l.running[s.Serial]; known {
		return worker.ErrConflict
	}
	if had, warm := l.warm[s.Serial]; warm {
		if had.Dir = s.Dir; !reflect.DeepEqual(had, s) {
			return fmt.Errorf("was kept warm as %+v, is created as %+v", had, s)
		}
		delete(l.warm, s.Serial)
	}
	l.running[s.Serial], l.dirs[s.Serial], l.images[s.Serial] = false, s.Dir, s.Image.Digest
	return nil
}

func (l *fakeLauncher) Warm(_ context.Context, s launch.Spec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range []string{launch.StateDir, launch.RunDir, launch.LogsDir} {
		if _, err := os.Stat(filepath.Join(s.Dir, name)); err != nil {
			return err
		}
	}
	if l.cold == nil {
		l.warm[s.Serial] = s
	}
	return l.cold
}

func (l *fakeLauncher) Start(_ context.Context, s worker.Serial) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if running, known := l.running[s]; running || !known {
		return worker.ErrConflict
	}
	l.running[s] = true
	log, err := os.OpenFile(filepath.Join(l.dirs[s], "logs", "worker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = log.WriteString(l.says)
	return errors.Join(err, log.Close())
}

func (l *fakeLauncher) Stop(ctx context.Context, s worker.Serial, grace time.Duration) error {
	if l.lingers && grace > 0 {
		select {
		case <-time.After(grace):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.running[s]; known && l.stuck == nil {
		l.running[s] = false
	}
	return l.stuck
}

func (l *fakeLauncher) List(context.Context) (all []launch.Status, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for serial, running := range l.running {
		all = append(all, launch.Status{Serial: serial, Running: running})
	}
	return all, nil
}

func (l *fakeLauncher) Remove(_ context.Context, s worker.Serial) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running[s] {
		return errors.New("removed while running")
	}
	if l.stays != nil {
		return l.stays
	}
	delete(l.running, s)
	delete(l.warm, s)
	return nil
}

var nora = Request{Name: "nora", Type: "template", ClassCode: "A1"}

// entries is the record so far.
func (r *rig) entries() (all []record.Entry) {
	r.t.Helper()
	for g, err := range r.registry.Groups(context.Background(), 0) {
		if err != nil {
			r.t.Fatal(err)
		}
		for _, line := range g.Entries {
			e, err := record.Decode(line)
			if err != nil {
				r.t.Fatal(err)
			}
			all = append(all, e)
		}
	}
	return all
}

// count counts the entries of a kind.
func (r *rig) count(kind record.Kind) (n int) {
	for _, e := range r.entries() {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// nothingLeft checks that of all that was begun only void ledger codes remain.
func (r *rig) nothingLeft(what string, port int) {
	r.t.Helper()
	workers, err := r.registry.Workers(context.Background(), registry.Filter{IncludeRetired: true})
	if err != nil || len(workers) != 0 {
		r.t.Errorf("%s: rows left: %+v, %v", what, workers, err)
	}
	for _, dir := range []string{".stage", ".warm", ".aside", "instances"} {
		if left, err := os.ReadDir(filepath.Join(r.dir, "workers", dir)); err != nil || len(left) != 0 {
			r.t.Errorf("%s: left in %s: %v, %v", what, dir, left, err)
		}
	}
	held, err := r.registry.HeldUIDs(context.Background())
	if err != nil || len(held) != 0 || len(r.launcher.warm) != 0 {
		r.t.Errorf("%s: kept warm: %v, uids %v, %v", what, r.launcher.warm, held, err)
	}
	if len(r.launcher.running) != 0 || len(r.attached) != 0 || len(r.kept) != 0 || len(r.held) != 0 {
		r.t.Errorf("%s: left: launcher %v, sessions %v, kept %v, ports %v", what, r.launcher.running, r.attached, r.kept, r.held)
	}
	if port != 0 {
		l, err := r.pool.Rebind(context.Background(), port)
		if err != nil {
			r.t.Errorf("%s: port: %v", what, err)
			return
		}
		_ = l.Close()
	}
}

// whole checks that a worker is all there.
func (r *rig) whole(w worker.Worker) {
	r.t.Helper()
	row, err := r.registry.Worker(r.t.Context(), w.Serial)
	if err != nil || row.State != worker.StateLive || row.ManifestSHA256 == "" {
		r.t.Errorf("row %+v, %v", row, err)
	}
	if !r.launcher.running[w.Serial] || !r.kept[w.Serial] || r.held[w.Serial] == nil || !r.attached[w.Serial] {
		r.t.Errorf("worker %s: launcher %v, kept %v, ports %v, sessions %v", w.Serial, r.launcher.running, r.kept, r.held, r.attached)
	}
	key, err := os.ReadFile(filepath.Join(r.stage.Dir(w.Serial), "certs", "worker.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	private, err := identity.ParseKey(key)
	if err != nil || !private.Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(w.PublicKey)) {
		r.t.Errorf("key: %v", err)
	}
}
