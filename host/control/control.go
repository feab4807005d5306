// Package control serves a host's control API, HostService, on a unix socket
// that only root and the host's own user may use.
//
// It owns the socket, the check of who connects, the translation between the
// wire and the domain, and the one table that turns errors into gRPC codes. What
// the calls do is the backend's business: control declares it as the small
// interfaces below and holds no state of its own.
//
// It promises that a caller always gets a code, a stable reason and, where the
// backend knows one, a hint; that a payload above the gate's limit reaches the
// gate and is refused there; and that Serve lets running calls end, within a
// bound, before it returns. It does not authenticate envelopes, and it opens
// nothing to the network.
package control

import (
	"context"
	"io"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Forger makes workers and ends them.
type Forger interface {
	// Forge makes one worker or leaves nothing behind. The same request again
	// gives the existing worker with Existed set.
	Forge(ctx context.Context, r ForgeRequest) (ForgeResult, error)
	// Plan says what Forge would make, and makes nothing.
	Plan(ctx context.Context, r ForgeRequest) (Plan, error)
	// Retire ends the worker that ref (a name or a serial) names.
	Retire(ctx context.Context, ref string, grace time.Duration) (worker.Worker, error)
}

// Workers answers questions about workers. A ref is a name or a serial.
type Workers interface {
	// Workers lists the workers that match f, oldest first.
	Workers(ctx context.Context, f WorkerFilter) ([]WorkerView, error)
	// Worker tells all about one; unknown is worker.ErrNotFound.
	Worker(ctx context.Context, ref string) (WorkerDetail, error)
	// Log opens the worker's log for reading; the caller closes it.
	Log(ctx context.Context, ref string) (Log, error)
	// Events visits what happened to the worker, or with an empty ref to all, from
	// entry from of the record on and not before since, and says with which entry
	// to go on.
	Events(ctx context.Context, ref string, since time.Time, from uint64, visit func(Event) error) (next uint64, err error)
}

// Log is a worker's log that is being read. Read gives io.EOF at the end of what
// is written so far, and may give more later.
type Log interface {
	io.ReadCloser
	// Last has reading begin with the last n lines.
	Last(n int) error
	// Removed says that the log is read to its end, and gone for good.
	Removed() (bool, error)
}

// Event is one thing that happened to a worker.
type Event struct {
	At     time.Time
	Event  string
	Name   string
	Serial worker.Serial
	Reason string
	Index  uint64 // of its entry in the record
}

// Sender puts envelopes through the gate and waits for results.
type Sender interface {
	Send(ctx context.Context, r SendRequest) (SendResult, error)
}

// Clients keeps who may send envelopes.
type Clients interface {
	// AddClient enrols a 32-byte Ed25519 public key under a name.
	AddClient(ctx context.Context, name string, publicKey []byte) (Client, error)
	// ListClients lists all, the revoked ones too.
	ListClients(ctx context.Context) ([]Client, error)
	// RevokeClient ends a client's right to send, at once and for good.
	RevokeClient(ctx context.Context, name string) (Client, error)
}

// Host tells about the host as a whole and ends it.
type Host interface {
	Status(ctx context.Context) (Status, error)
	// Types lists the registered worker types.
	Types(ctx context.Context) ([]Type, error)
	// Plugins lists every binary that was seen, quarantined ones too.
	Plugins(ctx context.Context) ([]Plugin, error)
	// Down stops every worker and the launcher, says how many workers it
	// stopped, and has the host end once the answer is on its way. After timeout
	// what is left is killed; zero means the host's default.
	Down(ctx context.Context, timeout time.Duration) (int, error)
}

// ForgeRequest asks for one worker.
type ForgeRequest struct {
	Name      string
	Type      string
	ClassCode string
	Version   string        // empty for the default version of the type
	Config    []byte        // a JSON object, or empty for the type's defaults
	Timeout   time.Duration // bounds the whole forge; zero means the host's default
	PlanHash  string        // of the plan that was agreed to; empty for none
	Like      string        // the worker that tells what is left empty, by name or serial
	NoStart   bool          // leaves the worker stopped
	Grants    []string      // what it may do beyond its own folder
	Mounts    []string      // folders that become grants: SOURCE:PLACE[:ro]
	Limits    worker.Limits // zero for those of the type
}

// ForgeResult is a forged worker.
type ForgeResult struct {
	Worker  WorkerView
	Existed bool // the same request had made it before
}

// Plan is what a forge would do.
type Plan struct {
	Worker   WorkerView
	Steps    []PlanStep
	Files    []PlanFile
	Manifest []byte // worker_manifest.json, as far as it is known
	Hash     string
}

// PlanStep is one step of the forge and what it would make.
type PlanStep struct {
	Step  string
	Makes string
}

// PlanFile is a file of a plan, or a folder: its path ends in /.
type PlanFile struct {
	Path   string
	Mode   string // octal, as in 0440
	Size   int64
	SHA256 string // hex; empty, as is Size, where it is known only once it is made
}

// WorkerView is a worker with what the host sees of its health.
type WorkerView struct {
	worker.Worker
	VaultIntegrity    bool
	VaultFault        string    // the part that failed when VaultIntegrity is false
	PortFault         string    // why its port is not answered; empty when it is
	LastHeartbeat     time.Time // zero before the first
	HeartbeatInterval time.Duration
	MissedHeartbeats  int
	NotGranted        []string      // what its type asks for beyond its grants; where one worker is told of
	Allowed           worker.Limits // what it may use, whoever said so
	Usage             worker.Usage  // what it uses, as the host reads it at this moment; zero where it does not run
}

// WorkerDetail adds what its heartbeats tell, what it can be asked for, and its
// files as they are on disk; nil when they are gone.
type WorkerDetail struct {
	WorkerView
	Metrics  Metrics
	Traffic  Traffic
	Tasks    []*workerv1.TaskKind
	Identity []byte // identity.json
	Manifest []byte // worker_manifest.json
}

// Metrics are what a worker's last heartbeat carried; zero before the first.
type Metrics struct {
	StartedAt    time.Time // of its process
	InFlight     uint32
	Done, Failed uint64 // tasks since StartedAt
	RSSBytes     uint64
}

// Traffic is what went through a worker's door since the host began.
type Traffic struct {
	Open                 int // connections of the moment
	Connections, Refused uint64
	Sent, Received       uint64 // bytes, by the worker
}

// WorkerFilter picks workers. Empty fields match all; retired workers are left
// out unless Retired is set or State asks for them.
type WorkerFilter struct {
	Type    string
	State   worker.State
	Retired bool
}

// SendRequest is one envelope as it arrived.
type SendRequest struct {
	// Peer names the connecting process, as in "uid=0 pid=4711".
	Peer     string
	Envelope *workerv1.Envelope
	// Timeout bounds the task, from admission; zero means the host's default.
	Timeout time.Duration
}

// SendResult is what came back. A task that failed is a result, not an error.
type SendResult struct {
	Result        *workerv1.Envelope // as signed by the worker
	Serial        worker.Serial
	PublicKey     []byte // the worker's, as the registry has it
	AdmittedIndex uint64
	ResultIndex   uint64
	Duration      time.Duration // from admission to result
}

// Client is somebody who may send envelopes.
type Client struct {
	Name      string
	ID        string // key:<base64url>
	CreatedAt time.Time
	RevokedAt time.Time // zero while the client may send
}

// Type is one version of a registered worker type.
type Type struct {
	Descriptor *workerv1.TypeDescriptor
	Digest     string // hex SHA-256 of the plugin binary
	Workers    int    // living workers of this version
	Draining   bool   // the binary is gone, workers still use it
}

// Plugin is one binary that the host has seen.
type Plugin struct {
	Path    string
	Digest  string
	State   string
	Type    string
	Version string
	Reason  string // why it is quarantined
	Fix     string // what to do about it
}

// Status is how the host stands.
type Status struct {
	HostID         string
	Version        string
	Launcher       string
	LauncherReason string
	StartedAt      time.Time
	RecordSize     uint64   // entries committed
	CheckpointSize uint64   // entries under the published checkpoint
	Degraded       []string // what does not work at the moment
}
