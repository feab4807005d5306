// Package host puts a host together: it opens the data folder, makes each part
// with what it needs of the others, brings what an earlier host left to an end,
// and runs until it is told to stop. New and Run are the table of contents of
// the whole system.
//
// One data folder has one host at a time; a lock on it says so. What New opens
// Run closes, whichever way it ends. Workers outlive the host; Down ends them.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/dals-host/dals-host/host/broker"
	"github.com/dals-host/dals-host/host/catalog"
	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/door"
	"github.com/dals-host/dals-host/host/forge"
	"github.com/dals-host/dals-host/host/gate"
	"github.com/dals-host/dals-host/host/ingress"
	"github.com/dals-host/dals-host/host/internal/workerlog"
	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/supervise"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
)

// Config says how to run a host.
type Config struct {
	DataDir    string
	PluginDirs []string // besides <DataDir>/plugins
	Launcher   string   // auto, containerd or process
	Containerd string   // "private", for one of the host's own, or the address of another; empty for the one of its workers, or else private
	Runtime    string   // crun or runc; empty for the better one of those installed
	UserNS     bool     // new containers have user namespaces of their own; takes a private containerd
	HTTP       string   // address for /healthz; empty for none
	PortLow    int      // the workers' ports, from this one
	PortHigh   int      // to this; both 0 for the default range
	Version    string   // of this binary
	// Drain is how long running calls may take once the host is told to end; what
	// is cut then is answered to the next host.
	Drain time.Duration
	// Warm says of how many workers, by type, the containers are made beforehand.
	// It takes the containerd launcher.
	Warm map[string]int
	// LogGuard is the command of a process that is GuardLogs over the data folder;
	// empty for none.
	LogGuard []string
	Logger   hclog.Logger
}

// heartbeatInterval is how often a worker gives a sign of life.
const heartbeatInterval = 2 * time.Second

// Host is a running host.
type Host struct {
	Config
	paths     paths
	startedAt time.Time
	reason    string // why this launcher

	lock       *flock.Flock
	keys       *keyring.Keyring
	authority  *identity.Authority
	registry   *registry.Registry
	record     *record.Log
	launcher   launch.Launcher
	stage      *stage.Store
	logs       *workerlog.Logs
	guard      *exec.Cmd // the log guard that this host began with
	guarded    io.Closer // its end is what the log guard waits for
	ports      *portKeeper
	plugins    *plugins
	catalog    *catalog.Catalog
	gate       *gate.Gate
	broker     *broker.Broker
	doors      *door.Doors
	ingress    *ingress.Gateway
	supervisor *supervise.Supervisor
	forge      *forge.Forge
	control    *control.Server
	listener   net.Listener // of --http; nil without
	integrity  *integrity
	mirrors    *mirrors
	strays     strays
	collecting chan struct{} // full while garbage is collected

	closers   []func() error // in the order of opening
	ready     chan struct{}
	goingDown atomic.Bool
	isDown    chan struct{} // closed once Down is done
}

// New opens the data folder and everything in it. It starts nothing but the
// private containerd; Run does.
func New(ctx context.Context, c Config) (_ *Host, err error) {
	h := &Host{Config: c, paths: pathsOf(c.DataDir), startedAt: time.Now().UTC(), mirrors: newMirrors(), ready: make(chan struct{}), isDown: make(chan struct{}), collecting: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	for _, open := range []func(context.Context) error{
		h.lockFolder, h.openRegistry, h.openKeys, h.lockIdentity, h.openRecord, h.openLauncher, h.openStage, h.openPorts,
		h.openCatalog, h.openGateAndBroker, h.openDoors, h.openSupervisorAndForge, h.openHTTP, h.openControl,
	} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Run serves until ctx ends or Down was called. Before it is ready it settles
// what an earlier host left open and knows the plugins again. At the end the
// control API lets running calls finish, and what they lean on ends after it.
func (h *Host) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, h.close()) }()
	beneath, stopBeneath := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeneath()
	g, running := errgroup.WithContext(beneath)
	g.Go(func() error { return h.logs.Run(running) }) // workers print from the beginning
	if err := h.recover(ctx); err != nil || ctx.Err() != nil {
		stopBeneath()
		return errors.Join(err, h.control.Close(), g.Wait())
	}
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	for _, run := range []func(context.Context) error{h.record.Run, h.catalog.Run, h.gate.Run, h.doors.Run, h.forge.Run, h.forge.KeepWarm, h.patrol, h.keepMirrors, h.keepGuard, h.serveHTTP, h.ports.run} {
		g.Go(func() error { return run(running) })
	}
	g.Go(func() error {
		defer stopBeneath()
		return h.control.Serve(serving)
	})
	select {
	case <-h.catalog.Ready():
		close(h.ready)
	case <-running.Done():
	}
	select {
	case <-h.isDown:
	case <-ctx.Done():
	case <-running.Done():
	}
	stopServing()
	return g.Wait()
}

// recover settles open forges, upgrades and retirements and takes over the workers
// that exist.
func (h *Host) recover(ctx context.Context) error {
	h.mirrorLastRetired(ctx)
	started := record.Entry{At: h.startedAt, Kind: record.HostStarted, Reason: "version " + h.Version}
	if err := h.note(ctx, started); err != nil {
		h.Logger.Error("start not recorded", "error", err)
	}
	if err := h.forge.Recover(ctx); err != nil {
		// What could not be undone stays in the journal; the host serves on.
		h.Logger.Error("not all that was left open could be settled", "error", err)
	}
	swept, err := h.stage.Sweep()
	if err != nil {
		return fmt.Errorf("sweep stages: %w", err)
	}
	if len(swept) > 0 {
		h.Logger.Warn("stages without a forge removed", "serials", swept)
	}
	workers, err := h.registry.Workers(ctx, registry.Filter{})
	if err != nil {
		return fmt.Errorf("read workers: %w", err)
	}
	for _, w := range workers {
		h.adopt(ctx, w)
	}
	h.reportStrays(ctx, workers)
	h.broker.Start()
	return nil
}

// adopt takes over a worker that exists. One worker's trouble is its own.
func (h *Host) adopt(ctx context.Context, w worker.Worker) {
	if w.State == worker.StateForging || w.State == worker.StateRetiring {
		return // could not be settled now; the forge tries again
	}
	h.ports.rebind(ctx, w)
	if w.State == worker.StateLive || w.State == worker.StateRestarting {
		h.sessions().Attach(w, h.stage.Dir(w.Serial))
		h.supervisor.Keep(w)
	}
	h.mirrors.changed(w.Serial)
}

// reportStrays tells of folders and launched workers that the registry does not
// know. They are never taken for leftovers: somebody may have to look at them.
func (h *Host) reportStrays(ctx context.Context, known []worker.Worker) {
	isKnown := map[worker.Serial]bool{}
	for _, w := range known {
		isKnown[w.Serial] = true
	}
	for range 2 { // nothing is on its way yet: what is there, is there again
		h.lookForStrays(ctx)
	}
	folders, err := h.stage.Instances()
	if err != nil {
		h.Logger.Warn("workers' folders not compared with the registry", "error", err)
	}
	for _, serial := range folders {
		if !isKnown[serial] {
			h.Logger.Warn("the registry does not know the worker of this folder; left alone", "folder", h.stage.Dir(serial))
		}
	}
}

// Ready is closed once the host serves.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// ID is the host's id.
func (h *Host) ID() string { return h.keys.HostID() }

// Socket is the path of the control socket.
func (h *Host) Socket() string { return h.paths.socket }

// LauncherName is the launcher in use, and why it was picked.
func (h *Host) LauncherName() (name, reason string) { return h.launcher.Name(), h.reason }

func (h *Host) onClose(f func() error) { h.closers = append(h.closers, f) }

// close closes what was opened, the last first.
func (h *Host) close() error {
	var errs []error
	for _, v := range slices.Backward(h.closers) {
		errs = append(errs, v())
	}
	h.closers = nil
	return errors.Join(errs...)
}

// paths are the places of a data folder.
type paths struct {
	data, lock, keys, registry, record, store, plugins, probes, workers, socket string
}

func pathsOf(data string) paths {
	in := func(name string) string { return filepath.Join(data, name) }
	return paths{
		data: data, lock: in("host.lock"), keys: in("keys"), registry: in("registry.db"), record: in("record"),
		store: in("store"), plugins: in("plugins"), probes: in("probes"), workers: in("workers"), socket: in("host.sock"),
	}
}
