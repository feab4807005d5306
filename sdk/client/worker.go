package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Worker is the worker object.
type Worker struct {
	WorkerName     string    `json:"worker_name"`
	WorkerType     string    `json:"worker_type"`
	TypeVersion    string    `json:"type_version"`
	ClassCode      string    `json:"class_code"`
	WorkerSerial   string    `json:"worker_serial"`
	ModelNumber    string    `json:"model_number"`
	LedgerCode     string    `json:"ledger_code"`
	Port           int       `json:"port"`
	State          string    `json:"state"`
	StateReason    string    `json:"state_reason,omitempty"` // why it is not live
	Launcher       string    `json:"launcher"`
	PublicKey      string    `json:"public_key"` // base64 of 32 bytes, Ed25519
	Glyph          string    `json:"glyph"`
	ManifestSHA256 string    `json:"manifest_sha256"`
	ImageDigest    string    `json:"image_digest"`
	VaultIntegrity bool      `json:"vault_integrity"`
	VaultFault     string    `json:"vault_fault,omitempty"` // the part that failed
	PortFault      string    `json:"port_fault,omitempty"`  // why its port is not answered at the moment
	Heartbeat      Heartbeat `json:"heartbeat"`
	Restarts       int       `json:"restarts,omitempty"`
	RestartTries   int       `json:"restart_tries,omitempty"` // since it was last healthy
	Grants         []string  `json:"grants,omitempty"`        // what it may do beyond its own folder
	NotGranted     []string  `json:"not_granted,omitempty"`   // what its type asks for beyond them; where one worker is told of
	CreatedAt      Time      `json:"created_at"`
	RetiredAt      Time      `json:"retired_at,omitzero"`
	Limits         *Limits   `json:"limits,omitempty"` // what it may use
	Usage          *Usage    `json:"usage,omitempty"`  // what it uses; absent where it does not run
}

// Limits bound what one worker may use.
type Limits struct {
	MemoryBytes int64 `json:"memory_bytes"`
	CPUMillis   int64 `json:"cpu_millis"` // thousandths of one core
	PIDs        int64 `json:"pids"`       // processes and threads
}

func (l Limits) proto() *hostv1.Limits {
	if l == (Limits{}) {
		return nil
	}
	return &hostv1.Limits{MemoryBytes: l.MemoryBytes, CpuMillis: l.CPUMillis, Pids: l.PIDs}
}

func limitsFromProto(l *hostv1.Limits) *Limits {
	if l == nil {
		return nil
	}
	return &Limits{l.GetMemoryBytes(), l.GetCpuMillis(), l.GetPids()}
}

// Usage is what all processes of a worker use, as its host's kernel counts it.
type Usage struct {
	At          Time  `json:"at"`           // when the host read it: for this answer
	MemoryBytes int64 `json:"memory_bytes"` // without page cache that can be dropped at once
	CPUTimeMs   int64 `json:"cpu_ms"`       // CPU time since its container began
	PIDs        int64 `json:"pids"`         // processes and threads
}

func usageFromProto(u *hostv1.Usage) *Usage {
	if u == nil {
		return nil
	}
	return &Usage{timeOf(u.GetAt()), u.GetMemoryBytes(), u.GetCpuMs(), u.GetPids()}
}

// Heartbeat is what the host heard of a worker.
type Heartbeat struct {
	Last     Time `json:"last"`
	Interval int  `json:"interval_s"`
	Missed   int  `json:"missed"`
}

// Time is RFC 3339 in UTC, and null in JSON when it has not come.
type Time struct{ time.Time }

// MarshalJSON writes null for the zero time.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return t.UTC().MarshalJSON()
}

// WorkerFromProto reads a worker off the wire.
func WorkerFromProto(w *hostv1.Worker) Worker {
	return Worker{
		WorkerName:     w.GetWorkerName(),
		WorkerType:     w.GetWorkerType(),
		TypeVersion:    w.GetTypeVersion(),
		ClassCode:      w.GetClassCode(),
		WorkerSerial:   w.GetWorkerSerial(),
		ModelNumber:    w.GetModelNumber(),
		LedgerCode:     w.GetLedgerCode(),
		Port:           int(w.GetPort()),
		State:          w.GetState(),
		StateReason:    w.GetStateReason(),
		Launcher:       w.GetLauncher(),
		PublicKey:      w.GetPublicKey(),
		Glyph:          w.GetGlyph(),
		ManifestSHA256: w.GetManifestSha256(),
		ImageDigest:    w.GetImageDigest(),
		VaultIntegrity: w.GetVaultIntegrity(),
		VaultFault:     w.GetVaultFault(),
		PortFault:      w.GetPortFault(),
		Heartbeat: Heartbeat{
			Last:     timeOf(w.GetHeartbeat().GetLast()),
			Interval: int(w.GetHeartbeat().GetIntervalS()),
			Missed:   int(w.GetHeartbeat().GetMissed()),
		},
		Restarts:     int(w.GetRestarts()),
		RestartTries: int(w.GetRestartTries()),
		Grants:       w.GetGrants(), NotGranted: w.GetNotGranted(),
		CreatedAt: timeOf(w.GetCreatedAt()),
		RetiredAt: timeOf(w.GetRetiredAt()),
		Limits:    limitsFromProto(w.GetLimits()),
		Usage:     usageFromProto(w.GetUsage()),
	}
}

// WorkerDetail is a worker with its own figures, the tasks that it answers, and
// its files as they are on disk. Figures and files of a retired worker are gone.
type WorkerDetail struct {
	Worker

	Metrics  *Metrics        `json:"metrics,omitempty"`
	Traffic  *Traffic        `json:"traffic,omitempty"` // absent where the worker was granted nothing
	Tasks    []Task          `json:"tasks"`
	Identity json.RawMessage `json:"identity,omitempty"` // identity.json
	Manifest json.RawMessage `json:"manifest,omitempty"` // worker_manifest.json
}

// Metrics are what a worker's last heartbeat carried: its own word, where Usage is
// the kernel's.
type Metrics struct {
	StartedAt     Time   `json:"started_at"` // of its process
	TasksInFlight int    `json:"tasks_in_flight"`
	TasksDone     uint64 `json:"tasks_done"`   // since StartedAt
	TasksFailed   uint64 `json:"tasks_failed"` // since StartedAt
	RSSBytes      uint64 `json:"rss_bytes"`
}

func metricsFromProto(m *hostv1.Metrics) *Metrics {
	if m == nil {
		return nil
	}
	return &Metrics{
		StartedAt: timeOf(m.GetStartedAt()), TasksInFlight: int(m.GetTasksInFlight()),
		TasksDone: m.GetTasksDone(), TasksFailed: m.GetTasksFailed(), RSSBytes: m.GetRssBytes(),
	}
}

// Traffic is what went through a worker's door since the host began.
type Traffic struct {
	Open        int    `json:"open"` // connections of the moment
	Connections uint64 `json:"connections"`
	Refused     uint64 `json:"refused"`
	Sent        uint64 `json:"sent_bytes"` // by the worker
	Received    uint64 `json:"received_bytes"`
}

func trafficFromProto(t *hostv1.Traffic) *Traffic {
	if t == nil {
		return nil
	}
	return &Traffic{
		Open: int(t.GetOpen()), Connections: t.GetConnections(), Refused: t.GetRefused(), Sent: t.GetSent(), Received: t.GetReceived(),
	}
}

// WorkerFilter picks workers; empty fields match all. Retired workers are left
// out unless Retired is set or State is "retired".
type WorkerFilter struct {
	Type    string
	State   string
	Retired bool
}

// Workers lists the workers that match f.
func (c *Client) Workers(ctx context.Context, f WorkerFilter) ([]Worker, error) {
	resp, err := c.host.ListWorkers(ctx, &hostv1.ListWorkersRequest{
		WorkerType: f.Type, State: f.State, IncludeRetired: f.Retired,
	})
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", c.fault(ctx, err))
	}
	return convert(resp.GetWorkers(), WorkerFromProto), nil
}

// Worker tells all about the worker that ref, a name or a serial, names.
func (c *Client) Worker(ctx context.Context, ref string) (WorkerDetail, error) {
	resp, err := c.host.GetWorker(ctx, &hostv1.GetWorkerRequest{Worker: ref})
	if err != nil {
		return WorkerDetail{}, fmt.Errorf("get worker: %w", c.fault(ctx, err))
	}
	return WorkerDetail{
		Worker: WorkerFromProto(resp.GetWorker()), Metrics: metricsFromProto(resp.GetMetrics()),
		Traffic:  trafficFromProto(resp.GetTraffic()),
		Tasks:    convert(resp.GetTasks(), taskFromProto),
		Identity: document(resp.GetIdentity()), Manifest: document(resp.GetManifest()),
	}, nil
}

// Retire ends a worker: container, keys and files go, its record stays. After
// grace what still runs is killed; zero means the host's default.
func (c *Client) Retire(ctx context.Context, ref string, grace time.Duration) (Worker, error) {
	resp, err := c.host.Retire(ctx, &hostv1.RetireRequest{Worker: ref, GraceMs: milliseconds(grace)})
	if err != nil {
		return Worker{}, fmt.Errorf("retire %.63s: %w", ref, c.fault(ctx, err))
	}
	return WorkerFromProto(resp.GetWorker()), nil
}

// document is data if it is JSON, and nothing otherwise: what cannot be read
// must not break the document around it.
func document(data []byte) json.RawMessage {
	if !json.Valid(data) {
		return nil
	}
	return data
}

func timeOf(s string) Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return Time{}
	}
	return Time{t}
}

// milliseconds is d as the wire has it: what is above zero stays above zero.
func milliseconds(d time.Duration) uint32 {
	const most = 1<<32 - 1
	ms := (d + time.Millisecond - 1).Milliseconds()
	return uint32(min(max(ms, 0), most))
}

// convert never gives nil: an empty list is [] in JSON.
func convert[From, To any](from []From, f func(From) To) []To {
	to := make([]To, len(from))
	for i, v := range from {
		to[i] = f(v)
	}
	return to
}
