package client

import (
	"context"
	"fmt"
	"time"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Stop ends a worker's process and keeps the worker, which stays stopped until
// Start, also over the end of the host. After grace what still runs is killed;
// zero means the host's default. Stopping a stopped worker changes nothing.
func (c *Client) Stop(ctx context.Context, ref string, grace time.Duration) (Worker, error) {
	resp, err := c.host.Stop(ctx, &hostv1.StopRequest{Worker: ref, GraceMs: milliseconds(grace)})
	if err != nil {
		return Worker{}, fmt.Errorf("stop %s: %w", spoken(ref), c.fault(ctx, err))
	}
	return WorkerFromProto(resp.GetWorker()), nil
}

// Start runs a worker that is stopped or failed and returns once it is live. One
// that is not healthy within timeout is ended again and stays what it was; zero
// means the host's default. Starting a live worker changes nothing.
func (c *Client) Start(ctx context.Context, ref string, timeout time.Duration) (Worker, error) {
	resp, err := c.host.Start(ctx, &hostv1.StartRequest{Worker: ref, TimeoutMs: milliseconds(timeout)})
	if err != nil {
		return Worker{}, fmt.Errorf("start %s: %w", spoken(ref), c.fault(ctx, err))
	}
	return WorkerFromProto(resp.GetWorker()), nil
}

// Restart ends a worker's process, as Stop does, and runs it again, as Start does.
// It goes through also when ctx ends.
func (c *Client) Restart(ctx context.Context, ref string, grace, timeout time.Duration) (Worker, error) {
	resp, err := c.host.Restart(ctx, &hostv1.RestartRequest{Worker: ref, GraceMs: milliseconds(grace), TimeoutMs: milliseconds(timeout)})
	if err != nil {
		return Worker{}, fmt.Errorf("restart %s: %w", spoken(ref), c.fault(ctx, err))
	}
	return WorkerFromProto(resp.GetWorker()), nil
}

// UpgradeRequest asks for another version, or configuration, of a worker.
type UpgradeRequest struct {
	Worker  string // name or serial
	Version string // of the worker's type; empty for the default one
	// Config is marshalled as the whole new config.json; nil keeps the worker's own.
	Config any
	// Mounts, as in ForgeRequest, take the place of what the worker has there.
	Mounts []string
	// Grace is for the old version to end, Timeout for the new one to become
	// healthy; zero means the host's default.
	Grace, Timeout time.Duration
}

// Upgraded is a worker after an upgrade.
type Upgraded struct {
	Worker

	FromVersion string `json:"from_version"` // what it was before
}

// Upgrade moves a worker to another version of its type. Serial, numbers, keys
// and state stay. If the new version does not become healthy, or ctx ends, the old
// one comes back. Where nothing differs nothing is done.
func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest) (Upgraded, error) {
	config, err := encode(r.Config)
	if err != nil {
		return Upgraded{}, fmt.Errorf("upgrade %s: encode config: %w", spoken(r.Worker), err)
	}
	resp, err := c.host.Upgrade(ctx, &hostv1.UpgradeRequest{
		Worker: r.Worker, TypeVersion: r.Version, Config: config, Mounts: r.Mounts,
		GraceMs: milliseconds(r.Grace), TimeoutMs: milliseconds(r.Timeout),
	})
	if err != nil {
		return Upgraded{}, fmt.Errorf("upgrade %s: %w", spoken(r.Worker), c.fault(ctx, err))
	}
	return Upgraded{Worker: WorkerFromProto(resp.GetWorker()), FromVersion: resp.GetFromVersion()}, nil
}
