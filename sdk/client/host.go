package client

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"iter"
	"math"
	"time"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Status is how a host stands.
type Status struct {
	HostID         string   `json:"host_id"`
	Version        string   `json:"version"`
	Launcher       string   `json:"launcher"`
	LauncherReason string   `json:"launcher_reason"` // why it was picked
	StartedAt      Time     `json:"started_at"`
	PID            int      `json:"pid"`
	RecordSize     uint64   `json:"record_size"`     // entries committed
	CheckpointSize uint64   `json:"checkpoint_size"` // entries under the published checkpoint
	Degraded       []string `json:"degraded"`        // what does not work at the moment
}

// Enrolment is somebody who may send envelopes.
type Enrolment struct {
	Name      string `json:"name"`
	ID        string `json:"id"` // key:<base64url>, the sender of its envelopes
	CreatedAt Time   `json:"created_at"`
	RevokedAt Time   `json:"revoked_at,omitzero"`
}

// LogsRequest asks for a worker's log.
type LogsRequest struct {
	Worker string // a name or a serial
	// Follow goes on with new lines until the context ends.
	Follow bool
	// Tail begins with that many last lines; zero with the first.
	Tail int
	// Since leaves out lines from before.
	Since time.Time
}

// Status asks how the host stands.
func (c *Client) Status(ctx context.Context) (Status, error) {
	s, err := c.host.GetStatus(ctx, &hostv1.GetStatusRequest{})
	if err != nil {
		return Status{}, fmt.Errorf("get status: %w", c.fault(ctx, err))
	}
	return Status{
		HostID: s.GetHostId(), Version: s.GetVersion(), Launcher: s.GetLauncher(), LauncherReason: s.GetLauncherReason(),
		StartedAt: timeOf(s.GetStartedAt()), PID: int(s.GetPid()),
		RecordSize: s.GetRecordSize(), CheckpointSize: s.GetCheckpointSize(),
		Degraded: append([]string{}, s.GetDegraded()...),
	}, nil
}

// Down stops every worker and the host, and says how many workers it stopped.
// After timeout what is left is killed; zero means the host's default.
func (c *Client) Down(ctx context.Context, timeout time.Duration) (int, error) {
	resp, err := c.host.Down(ctx, &hostv1.DownRequest{TimeoutMs: milliseconds(timeout)})
	if err != nil {
		return 0, fmt.Errorf("stop host: %w", c.fault(ctx, err))
	}
	return int(resp.GetWorkersStopped()), nil
}

// AddClient enrols a public key: who holds the private one may send envelopes.
func (c *Client) AddClient(ctx context.Context, name string, public ed25519.PublicKey) (Enrolment, error) {
	resp, err := c.host.AddClient(ctx, &hostv1.AddClientRequest{Name: name, PublicKey: public})
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrol client: %w", c.fault(ctx, err))
	}
	return enrolment(resp.GetClient()), nil
}

// Clients lists who may send envelopes, and who was revoked.
func (c *Client) Clients(ctx context.Context) ([]Enrolment, error) {
	resp, err := c.host.ListClients(ctx, &hostv1.ListClientsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list clients: %w", c.fault(ctx, err))
	}
	return convert(resp.GetClients(), enrolment), nil
}

// RevokeClient ends a client's right to send, at once and for good.
func (c *Client) RevokeClient(ctx context.Context, name string) (Enrolment, error) {
	resp, err := c.host.RevokeClient(ctx, &hostv1.RevokeClientRequest{Name: name})
	if err != nil {
		return Enrolment{}, fmt.Errorf("revoke client: %w", c.fault(ctx, err))
	}
	return enrolment(resp.GetClient()), nil
}

// Logs gives a worker's log line by line, as the worker wrote it: mind control
// characters. The first error is the last thing that it gives.
func (c *Client) Logs(ctx context.Context, r LogsRequest) iter.Seq2[string, error] {
	request := &hostv1.StreamLogsRequest{Worker: r.Worker, Follow: r.Follow, Tail: uint32(min(max(r.Tail, 0), math.MaxInt32)), SinceUnixMs: sinceUnixMs(r.Since)}
	return streamed(ctx, c, "logs", request, c.host.StreamLogs, (*hostv1.StreamLogsResponse).GetLines)
}

func enrolment(c *hostv1.Client) Enrolment {
	return Enrolment{
		Name: c.GetName(), ID: c.GetId(),
		CreatedAt: timeOf(c.GetCreatedAt()), RevokedAt: timeOf(c.GetRevokedAt()),
	}
}
