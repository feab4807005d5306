package host

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dals-host/dals-host/host/broker"
	"github.com/dals-host/dals-host/host/door"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// exchange carries what workers ask of each other.
type exchange struct{ *Host }

// Pick draws one of the live workers of a type by lot.
func (e exchange) Pick(ctx context.Context, caller worker.Worker, typeName string) (worker.Serial, error) {
	live, err := e.registry.Workers(ctx, registry.Filter{Type: typeName, State: worker.StateLive})
	if err != nil {
		return "", err
	}
	live = slices.DeleteFunc(live, func(w worker.Worker) bool { return w.Serial == caller.Serial })
	if len(live) == 0 {
		return "", worker.Refuse("worker_unavailable", "no other worker of type %s is live", typeName)
	}
	return live[rand.IntN(len(live))].Serial, nil //nolint:gosec // who is called is no secret
}

// Call sends a worker's envelope as a client's is sent.
func (e exchange) Call(ctx context.Context, r door.CallRequest) (*hostv1.SendResponse, error) {
	if err := e.checkRecord(); err != nil {
		return nil, err
	}
	reply, err := e.broker.Call(ctx, r.Caller, broker.Task{EnvelopeID: r.EnvelopeID, Attempt: r.Attempt}, r.Envelope, r.Timeout)
	if err != nil {
		return nil, err
	}
	return &hostv1.SendResponse{
		Result: reply.Result, WorkerSerial: string(reply.Worker.Serial), PublicKey: reply.Worker.PublicKey,
		AdmittedIndex: reply.AdmittedIndex, ResultIndex: reply.ResultIndex, DurationMs: uint32(reply.Duration.Milliseconds()),
	}, nil
}

// Ingress sends an envelope of the host's own.
func (e exchange) Ingress(ctx context.Context, peer, granted string, env *workerv1.Envelope, timeout time.Duration) (*workerv1.Envelope, error) {
	if err := e.checkRecord(); err != nil {
		return nil, err
	}
	reply, err := e.broker.Ingress(ctx, peer, e.keys.Ingress().Public(), granted, env, timeout)
	return reply.Result, err
}
