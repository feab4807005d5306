// Package catalog finds the plugin binaries in the plugins folders of a running
// host and says which worker types they provide.
//
// It owns the life of a plugin: discovered, verified, probed, registered,
// draining, gone, or quarantined with a reason and a fix. A file is taken when
// two looks at it agree and nobody has it open for writing; it is checked on its
// descriptor and copied into a content-addressed store, and only that copy is
// ever executed: once per digest, by a Prober, to ask for its descriptor, which
// is checked as hostile data. What was learned is kept in a Registry, so that
// neither a restart nor a second copy of the file executes anything.
//
// Trust is on first use: the first bytes seen as a version of a type are that
// version for ever, a family belongs to the first type that claims it, and a new
// version becomes the default only if its file has the owner of the type's first
// one.
//
// Whatever is not a good plugin is quarantined and harms nothing: not the host,
// not another plugin, not a worker. Trouble of the host's own (no space, no
// processes to be had) quarantines nobody: it is tried again. A plugin whose file
// is gone drains: nothing is forged from it any more, its workers stay.
//
// The catalog does not start workers, deletes from its store only what Collect is
// told to, and knows nothing of launchers. A probed plugin is no trusted plugin: see Prober for what
// confines it.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	rescan   = time.Second            // between two looks at everything
	settle   = 100 * time.Millisecond // between the two looks that must agree
	breath   = 50 * time.Millisecond  // between looks at most, however many events
	maxJobs  = 2                      // verifications and probes at once
	maxDelay = time.Minute            // between attempts when the host is in trouble
)

// Config is what a Catalog needs. Prober, Registry and InUse are required.
type Config struct {
	// Dirs are the plugins folders. One that does not exist yet is waited for.
	Dirs []string
	// StoreDir is the host's content-addressed store; binaries lie in its folder
	// sha256, named by their digest. It is made if it does not exist.
	StoreDir string
	Prober   Prober
	Registry Registry
	// InUse says whether a worker lives that was forged from this version. It is
	// called from Run, about once a second for a version whose file is gone.
	InUse func(typeName, version string) bool
	// OnEvent, if not nil, is told of each change of state, in order, from Run's
	// goroutine: it must not block.
	OnEvent func(Event)
	Logger  hclog.Logger
}

// Catalog is the set of worker types that a host can forge from. All its methods
// may be called at any time from any goroutine; they read a snapshot.
type Catalog struct {
	cfg   Config
	store *store
	view  atomic.Pointer[view]
	ready chan struct{}

	collections chan collection
}

// New makes a catalog that knows nothing until it runs. It opens the store, so
// an error says that the host cannot work there.
func New(cfg Config) (*Catalog, error) {
	if cfg.Prober == nil || cfg.Registry == nil || cfg.InUse == nil || len(cfg.Dirs) == 0 {
		return nil, errors.New("make catalog: folders, prober, registry and InUse are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	dirs := make([]string, 0, len(cfg.Dirs))
	for _, dir := range cfg.Dirs {
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("find plugins folder: %w", err)
		}
		dirs = append(dirs, absolute)
	}
	slices.Sort(dirs)
	cfg.Dirs = slices.Compact(dirs)
	s, err := openStore(cfg.StoreDir, os.Geteuid())
	if err != nil {
		return nil, fmt.Errorf("open plugin store: %w", err)
	}
	c := &Catalog{cfg: cfg, store: s, ready: make(chan struct{}), collections: make(chan collection)}
	c.view.Store(&view{dirs: cfg.Dirs})
	return c, nil
}

// Ready is closed once Run has looked at the folders for the first time: what an
// earlier host had registered is registered again. New plugins follow.
func (c *Catalog) Ready() <-chan struct{} { return c.ready }

// Run keeps the catalog true until ctx ends, then returns nil after the last
// probe has ended. It returns an error only when the registry cannot be read at
// the start. It runs once.
func (c *Catalog) Run(ctx context.Context) error {
	k, err := newKeeper(ctx, c)
	if err != nil {
		return fmt.Errorf("read known plugins: %w", err)
	}
	defer k.jobs.Wait()
	defer k.watch.close()
	k.lookAround()
	k.advance(ctx)
	k.adoptWorkers()
	k.publish()
	close(c.ready)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		next.Reset(time.Until(k.nextLook()))
		select {
		case <-ctx.Done():
			return nil
		case <-k.watch.events():
			k.hurried = true
			continue
		case err := <-k.watch.overflows():
			k.log.Debug("watch lost events", "error", err)
			k.hurried = true
			continue
		case finish := <-k.finished:
			finish()
		case request := <-c.collections:
			k.collecting = append(k.collecting, request)
		case <-next.C:
			k.lookAround()
		}
		k.collect()
		k.advance(ctx)
		k.retire()
		k.publish()
	}
}
