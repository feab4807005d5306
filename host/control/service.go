package control

import (
	"context"
	"os"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// service hands each call to the backend. Errors go as they are: the
// interceptor gives them their codes.
type service struct {
	hostv1.UnimplementedHostServiceServer
	Config

	stopping <-chan struct{}
}

func (s *service) GetStatus(ctx context.Context, _ *hostv1.GetStatusRequest) (*hostv1.GetStatusResponse, error) {
	status, err := s.Host.Status(ctx)
	if err != nil {
		return nil, err
	}
	return statusProto(status, os.Getpid()), nil
}

func (s *service) ListTypes(ctx context.Context, _ *hostv1.ListTypesRequest) (*hostv1.ListTypesResponse, error) {
	types, err := s.Host.Types(ctx)
	if err != nil {
		return nil, err
	}
	return &hostv1.ListTypesResponse{Types: convert(types, typeProto)}, nil
}

func (s *service) ListPlugins(ctx context.Context, _ *hostv1.ListPluginsRequest) (*hostv1.ListPluginsResponse, error) {
	plugins, err := s.Host.Plugins(ctx)
	if err != nil {
		return nil, err
	}
	return &hostv1.ListPluginsResponse{Plugins: convert(plugins, pluginProto)}, nil
}

func (s *service) Forge(ctx context.Context, r *hostv1.ForgeRequest) (*hostv1.ForgeResponse, error) {
	request := ForgeRequest{
		Name: r.GetWorkerName(), Type: r.GetWorkerType(), ClassCode: r.GetClassCode(), Version: r.GetTypeVersion(),
		Config: r.GetConfig(), Timeout: milliseconds(r.GetTimeoutMs()), PlanHash: r.GetPlanHash(),
		Like: r.GetLike(), NoStart: r.GetNoStart(), Grants: r.GetGrants(), Mounts: r.GetMounts(),
		Limits: worker.Limits{MemoryBytes: r.GetLimits().GetMemoryBytes(), CPUMillis: r.GetLimits().GetCpuMillis(), PIDs: r.GetLimits().GetPids()},
	}
	if r.GetDryRun() {
		plan, err := s.Forger.Plan(ctx, request)
		if err != nil {
			return nil, err
		}
		return planProto(plan), nil
	}
	result, err := s.Forger.Forge(ctx, request)
	if err != nil {
		return nil, err
	}
	return &hostv1.ForgeResponse{Worker: WorkerProto(result.Worker), Existed: result.Existed}, nil
}

func (s *service) ListWorkers(ctx context.Context, r *hostv1.ListWorkersRequest) (*hostv1.ListWorkersResponse, error) {
	filter := WorkerFilter{Type: r.GetWorkerType(), Retired: r.GetIncludeRetired()}
	if asked := r.GetState(); asked != "" {
		var err error
		if filter.State, err = worker.ParseState(asked); err != nil {
			return nil, err
		}
	}
	workers, err := s.Workers.Workers(ctx, filter)
	if err != nil {
		return nil, err
	}
	return &hostv1.ListWorkersResponse{Workers: convert(workers, WorkerProto)}, nil
}

func (s *service) GetWorker(ctx context.Context, r *hostv1.GetWorkerRequest) (*hostv1.GetWorkerResponse, error) {
	detail, err := s.Workers.Worker(ctx, r.GetWorker())
	if err != nil {
		return nil, err
	}
	return &hostv1.GetWorkerResponse{
		Worker: WorkerProto(detail.WorkerView), Metrics: metricsProto(detail.Metrics), Traffic: trafficProto(detail), Tasks: detail.Tasks,
		Identity: detail.Identity, Manifest: detail.Manifest,
	}, nil
}

func (s *service) Retire(ctx context.Context, r *hostv1.RetireRequest) (*hostv1.RetireResponse, error) {
	retired, err := s.Forger.Retire(ctx, r.GetWorker(), milliseconds(r.GetGraceMs()))
	if err != nil {
		return nil, err
	}
	return &hostv1.RetireResponse{Worker: WorkerProto(WorkerView{Worker: retired})}, nil
}

func (s *service) Send(ctx context.Context, r *hostv1.SendRequest) (*hostv1.SendResponse, error) {
	result, err := s.Sender.Send(ctx, SendRequest{
		Peer: peerName(ctx), Envelope: r.GetEnvelope(), Timeout: milliseconds(r.GetTimeoutMs()),
	})
	if err != nil {
		return nil, err
	}
	return &hostv1.SendResponse{
		Result: result.Result, WorkerSerial: string(result.Serial), PublicKey: result.PublicKey,
		AdmittedIndex: result.AdmittedIndex, ResultIndex: result.ResultIndex,
		DurationMs: uint32(result.Duration.Milliseconds()),
	}, nil
}

func (s *service) AddClient(ctx context.Context, r *hostv1.AddClientRequest) (*hostv1.AddClientResponse, error) {
	client, err := s.Clients.AddClient(ctx, r.GetName(), r.GetPublicKey())
	if err != nil {
		return nil, err
	}
	return &hostv1.AddClientResponse{Client: clientProto(client)}, nil
}

func (s *service) ListClients(ctx context.Context, _ *hostv1.ListClientsRequest) (*hostv1.ListClientsResponse, error) {
	clients, err := s.Clients.ListClients(ctx)
	if err != nil {
		return nil, err
	}
	return &hostv1.ListClientsResponse{Clients: convert(clients, clientProto)}, nil
}

func (s *service) RevokeClient(ctx context.Context, r *hostv1.RevokeClientRequest) (*hostv1.RevokeClientResponse, error) {
	client, err := s.Clients.RevokeClient(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &hostv1.RevokeClientResponse{Client: clientProto(client)}, nil
}

func (s *service) Down(ctx context.Context, r *hostv1.DownRequest) (*hostv1.DownResponse, error) {
	stopped, err := s.Host.Down(ctx, milliseconds(r.GetTimeoutMs()))
	if err != nil {
		return nil, err
	}
	return &hostv1.DownResponse{WorkersStopped: int32(stopped)}, nil
}

func milliseconds(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond }
