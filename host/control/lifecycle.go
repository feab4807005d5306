package control

import (
	"context"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Lifecycle ends workers that exist, and runs them. A ref is a name or a serial;
// a grace or timeout of zero means the host's default.
type Lifecycle interface {
	// Stop ends a worker's process; the worker stays stopped until Start.
	Stop(ctx context.Context, ref string, grace time.Duration) (worker.Worker, error)
	// Start runs a worker that is stopped or failed and waits until it is live.
	Start(ctx context.Context, ref string, timeout time.Duration) (WorkerView, error)
	// Restart ends a worker's process and runs it again.
	Restart(ctx context.Context, ref string, grace, timeout time.Duration) (WorkerView, error)
	// Upgrade moves a worker to another version of its type, or leaves it at the
	// one that it has.
	Upgrade(ctx context.Context, r UpgradeRequest) (Upgraded, error)
}

// UpgradeRequest asks for another version, or configuration, of a worker.
type UpgradeRequest struct {
	Ref     string
	Version string        // empty for the type's default version
	Config  []byte        // a JSON object, or empty to keep the worker's own
	Mounts  []string      // SOURCE:PLACE[:ro], each in place of what the worker has there
	Grace   time.Duration // for the old version to end
	Timeout time.Duration // for the new one to become healthy
}

// Upgraded is a worker and the version that it had before.
type Upgraded struct {
	Worker      WorkerView
	FromVersion string
}

func (s *service) Stop(ctx context.Context, r *hostv1.StopRequest) (*hostv1.StopResponse, error) {
	w, err := s.Lifecycle.Stop(ctx, r.GetWorker(), milliseconds(r.GetGraceMs()))
	if err != nil {
		return nil, err
	}
	return &hostv1.StopResponse{Worker: WorkerProto(WorkerView{Worker: w})}, nil
}

func (s *service) Start(ctx context.Context, r *hostv1.StartRequest) (*hostv1.StartResponse, error) {
	w, err := s.Lifecycle.Start(ctx, r.GetWorker(), milliseconds(r.GetTimeoutMs()))
	if err != nil {
		return nil, err
	}
	return &hostv1.StartResponse{Worker: WorkerProto(w)}, nil
}

func (s *service) Restart(ctx context.Context, r *hostv1.RestartRequest) (*hostv1.RestartResponse, error) {
	w, err := s.Lifecycle.Restart(ctx, r.GetWorker(), milliseconds(r.GetGraceMs()), milliseconds(r.GetTimeoutMs()))
	if err != nil {
		return nil, err
	}
	return &hostv1.RestartResponse{Worker: WorkerProto(w)}, nil
}

func (s *service) Upgrade(ctx context.Context, r *hostv1.UpgradeRequest) (*hostv1.UpgradeResponse, error) {
	done, err := s.Lifecycle.Upgrade(ctx, UpgradeRequest{
		Ref: r.GetWorker(), Version: r.GetTypeVersion(), Config: r.GetConfig(), Mounts: r.GetMounts(),
		Grace: milliseconds(r.GetGraceMs()), Timeout: milliseconds(r.GetTimeoutMs()),
	})
	if err != nil {
		return nil, err
	}
	return &hostv1.UpgradeResponse{Worker: WorkerProto(done.Worker), FromVersion: done.FromVersion}, nil
}
