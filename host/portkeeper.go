package host

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// rebindEvery spaces the attempts to get a worker's port back.
const rebindEvery = 2 * time.Second

// portKeeper holds the listeners of the workers' ports, and takes those back
// that a start could not have because somebody else had them.
type portKeeper struct {
	pool     *ports.Pool
	registry *registry.Registry
	health   func(worker.Serial) ports.Health
	in       func(worker.Serial, http.ResponseWriter, *http.Request)
	changed  func(worker.Serial) // hears of a worker whose port is served again
	logger   hclog.Logger

	mu   sync.Mutex
	held map[worker.Serial]*ports.Listener
	lost map[worker.Serial]lostPort
}

// lostPort is a worker's port that somebody else has.
type lostPort struct {
	port int
	err  error
}

func (h *Host) openPorts(context.Context) error {
	pool, err := ports.New(ports.Config{Low: h.PortLow, High: h.PortHigh, Logger: h.Logger.Named("ports")})
	if err != nil {
		return err
	}
	h.ports = &portKeeper{
		pool: pool, registry: h.registry, health: h.portHealth, in: h.portIngress, changed: h.mirrors.changed, logger: h.Logger.Named("ports"),
		held: map[worker.Serial]*ports.Listener{}, lost: map[worker.Serial]lostPort{},
	}
	h.onClose(h.ports.close)
	return nil
}

// Bind takes a port that no worker has and none had a short while ago.
func (k *portKeeper) Bind(ctx context.Context) (*ports.Listener, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l, err := k.pool.Bind(ctx, func(port int) bool {
		taken, err := k.registry.PortTaken(ctx, port)
		if err != nil {
			cancel(err) // ends the search
		}
		return taken
	})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, fmt.Errorf("bind port: %w", cause)
	}
	return l, err
}

// Assign serves a worker's health on its port until Release.
func (k *portKeeper) Assign(serial worker.Serial, l *ports.Listener) {
	k.serve(serial, l)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held[serial] = l
}

// Release frees a worker's port.
func (k *portKeeper) Release(serial worker.Serial) {
	k.mu.Lock()
	l := k.held[serial]
	delete(k.held, serial)
	delete(k.lost, serial)
	k.mu.Unlock()
	if l != nil {
		_ = l.Close() // a closed listener has no news
	}
}

// rebind takes the port of a worker that an earlier host had bound. When
// somebody else has it now, only the worker's HTTP is degraded, until Run gets
// it back.
func (k *portKeeper) rebind(ctx context.Context, w worker.Worker) {
	l, err := k.pool.Rebind(ctx, w.Port)
	if err == nil {
		k.Assign(w.Serial, l)
		return
	}
	k.logger.Warn("port of a worker not bound: its health is not served there until it is free", "serial", w.Serial, "port", w.Port, "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lost[w.Serial] = lostPort{w.Port, err}
}

// run takes back, until ctx ends, the ports that are lost and have become free.
func (k *portKeeper) run(ctx context.Context) error {
	ticker := time.NewTicker(rebindEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			k.regain(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *portKeeper) regain(ctx context.Context) {
	k.mu.Lock()
	lost := maps.Clone(k.lost)
	k.mu.Unlock()
	for serial, p := range lost {
		l, err := k.pool.Rebind(ctx, p.port)
		if err != nil {
			continue
		}
		k.serve(serial, l)
		if !k.found(serial, l) {
			_ = l.Close() // the worker has retired meanwhile
			continue
		}
		k.logger.Info("port of a worker bound again", "serial", serial, "port", p.port)
		k.changed(serial)
	}
}

// found says whether a worker still misses the port that was bound for it.
func (k *portKeeper) found(serial worker.Serial, l *ports.Listener) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.lost[serial]; !ok {
		return false
	}
	delete(k.lost, serial)
	k.held[serial] = l
	return true
}

// fault says why a worker's port is not served; empty when it is.
func (k *portKeeper) fault(serial worker.Serial) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p, ok := k.lost[serial]; ok {
		return p.err.Error()
	}
	return ""
}

// degraded names the workers whose port is not served.
func (k *portKeeper) degraded() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var faults []string
	for serial, p := range k.lost {
		faults = append(faults, fmt.Sprintf("HTTP of worker %s: %v (%s)", serial, p.err, worker.HintOf(p.err)))
	}
	slices.Sort(faults)
	return faults
}

func (k *portKeeper) close() error {
	k.mu.Lock()
	held := k.held
	k.held = map[worker.Serial]*ports.Listener{}
	k.mu.Unlock()
	// Without the lock: a request that is being answered may want it.
	for _, l := range held {
		_ = l.Close() // a closed listener has no news
	}
	return nil
}

// serve has a port answer for its worker.
func (k *portKeeper) serve(serial worker.Serial, l *ports.Listener) {
	l.View(func() ports.Health { return k.health(serial) })
	l.Take(func(w http.ResponseWriter, r *http.Request) { k.in(serial, w, r) })
}
