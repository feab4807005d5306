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

// serveHTTP answers /healthz on the host's own address, when it was given one.
func (h *Host) serveHTTP(ctx context.Context) error {
	if h.HTTP == "" {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", h.HTTP)
	if err != nil {
		return worker.Hint(fmt.Errorf("serve health: %w", err), "give another address with --http")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
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
	}
	p.Ready = p.Live && view.VaultIntegrity
	if root, err := h.stage.OpenRoot(serial); err == nil {
		defer root.Close()
		p.IdentityJSON, _ = root.ReadFile(identity.File) // a missing one shows in the vault's integrity
	}
	return p
}
