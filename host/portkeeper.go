package host

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// portKeeper holds the listeners of the workers' ports and remembers those that
// a restart could not get back.
type portKeeper struct {
	pool     *ports.Pool
	registry *registry.Registry
	health   func(worker.Serial) ports.Health
	logger   hclog.Logger

	mu   sync.Mutex
	held map[worker.Serial]*ports.Listener
	lost map[worker.Serial]error
}

func (h *Host) openPorts(context.Context) error {
	pool, err := ports.New(ports.Config{Logger: h.Logger.Named("ports")})
	if err != nil {
		return err
	}
	h.ports = &portKeeper{
		pool: pool, registry: h.registry, health: h.portHealth, logger: h.Logger.Named("ports"),
		held: map[worker.Serial]*ports.Listener{}, lost: map[worker.Serial]error{},
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
	l.View(func() ports.Health { return k.health(serial) })
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
// somebody else has it now, only the worker's HTTP is degraded.
func (k *portKeeper) rebind(ctx context.Context, w worker.Worker) {
	l, err := k.pool.Rebind(ctx, w.Port)
	if err != nil {
		k.logger.Warn("port of a worker not bound: its health is not served there", "serial", w.Serial, "port", w.Port, "error", err)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.lost[w.Serial] = err
		return
	}
	k.Assign(w.Serial, l)
}

// degraded names the workers whose port is not served.
func (k *portKeeper) degraded() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var faults []string
	for serial, err := range k.lost {
		faults = append(faults, fmt.Sprintf("HTTP of worker %s: %v", serial, err))
	}
	return faults
}

func (k *portKeeper) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.held {
		_ = l.Close() // a closed listener has no news
	}
	clear(k.held)
	return nil
}
