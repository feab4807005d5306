package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
)

// openHTTP binds the host's own address, when it was given one.
func (h *Host) openHTTP(ctx context.Context) (err error) {
	if h.HTTP == "" {
		return nil
	}
	if h.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", h.HTTP); err != nil {
		return worker.Hint(fmt.Errorf("serve health: %w", err), "give another address with --http")
	}
	h.onClose(func() error { _ = h.listener.Close(); return nil }) // the server may have closed it
	return nil
}

// serveHTTP answers /healthz there.
func (h *Host) serveHTTP(ctx context.Context) error {
	if h.listener == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health: %w", err)
	}
	return nil
}

// portHealth is what a worker's own port tells of it.
func (h *Host) portHealth(serial worker.Serial) ports.Health {
	w, err := h.registry.Worker(context.Background(), serial)
	if err != nil {
		return ports.Health{}
	}
	view, health := h.view(context.Background(), w), h.broker.Health(serial)
	p := ports.Health{
		Live: health.Connected && health.Missed < 2, VaultIntegrity: view.VaultIntegrity,
		LastHeartbeat: health.Last, Missed: health.Missed, Restarts: w.Restarts,
		TasksInFlight: health.InFlight, TasksDone: health.Done, TasksFailed: health.Failed, RSSBytes: health.RSSBytes,
		Usage: view.Usage,
	}
	if w.Launcher != launcherProcess { // which enforces none
		p.Limits = view.Allowed
	}
	if len(w.Grants) > 0 {
		t := ports.Traffic(h.doors.Traffic(serial))
		p.Traffic = &t
	}
	p.Ready = p.Live && view.VaultIntegrity
	if w.State != worker.StateLive {
		p.Reason = string(w.State)
	}
	if root, err := h.stage.OpenRoot(serial); err == nil {
		defer root.Close()
		p.IdentityJSON, _ = root.ReadFile(identity.File) // a missing one shows in the vault's integrity
	}
	return p
}

// portIngress answers what comes in by a worker's port under /in/.
func (h *Host) portIngress(serial worker.Serial, w http.ResponseWriter, r *http.Request) {
	h.ingress.Serve(serial, w, r)
}
