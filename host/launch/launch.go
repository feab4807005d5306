// Package launch says what it means to run a worker, whatever runs it.
//
// A Launcher turns a binary and a worker's folder into a running worker and
// reports its end. Workers never belong to the host's process: they outlive
// its death, and a launcher opened later over the same data folder finds them
// again. The one promise above all others is that no worker ever runs twice:
// Start refuses while an earlier run is not proven gone, and Stop returns only
// with that proof.
//
// A launcher keeps no worker alive by itself: restarting what ended is the
// caller's decision (Stop, then Start). It does not make folders, keys or
// numbers, and it does not talk to workers. Package launchtest holds the
// contract as a test suite; process and containerd are the two launchers.
package launch

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// The names of a worker's folder that launchers have to know.
const (
	EnvDir     = "DALS_WORKER_DIR" // set for every worker: its folder, as the worker sees it
	RunDir     = "run"             // writable by the worker; holds its socket
	StateDir   = "state"           // writable by the worker
	LogsDir    = "logs"            // the host's own
	EtcDir     = "etc"             // not of every worker: Spec.Etc
	LogFile    = "worker.log"      // in LogsDir: the worker's stdout and stderr, appended
	SocketFile = "worker.sock"     // in RunDir
)

// What a worker may use where its worker.Limits say nothing.
const (
	DefaultMemoryBytes = 256 << 20
	DefaultCPUMillis   = 1000
	DefaultPIDs        = 256
)

// What a worker may keep in StateDir and RunDir together, where its launcher
// isolates it.
const (
	DiskBytes = 1 << 30
	DiskFiles = 100_000
)

// LimitsOf are limits with the defaults where they say nothing.
func LimitsOf(l worker.Limits) worker.Limits {
	return l.Or(worker.Limits{MemoryBytes: DefaultMemoryBytes, CPUMillis: DefaultCPUMillis, PIDs: DefaultPIDs})
}

// Image is a worker binary in the host's content-addressed store.
type Image struct {
	Digest  string // hex SHA-256 of the binary
	Path    string // the store's copy, absolute
	Type    string
	Version string
}

// Spec says which worker to run, from what, and as whom. Check has its bounds.
type Spec struct {
	Serial worker.Serial
	Image  Image
	Dir    string // the worker's folder, absolute
	UID    int    // its uid, and its gid; nobody else may have it
	Limits worker.Limits
	// Etc says that the worker's folder has an EtcDir, which a launcher with files
	// of its own shows as /etc: the names in its hosts file are served by the
	// worker itself, on loopback addresses and on any port.
	Etc bool
	// Mounts are folders of the machine that the worker is shown. Each Start takes
	// hold of them anew, and refuses what is not the folder that was granted.
	Mounts []Mount `json:",omitempty"`
}

// Status is what a launcher knows of one created worker.
type Status struct {
	// Serial is any name for what somebody else has created where the launcher
	// keeps its workers.
	Serial  worker.Serial
	Running bool
	PID     int // of the worker's first process, as the host sees it; 0 unless Running
	// Unsettled says that there was a run, or the beginning of one, which no Stop
	// has settled: something of it may be left.
	Unsettled bool
	// Image is what it was created from, as far as that is written down where the
	// launcher keeps its containers or processes; without Path.
	Image Image
}

// Artifact is one thing that Prepare made of a worker binary.
type Artifact struct {
	Kind   string // "image" or "rootfs"
	Name   string // as its launcher knows it
	Digest string // of the binary
	Bytes  int64  // that go with it
	InUse  bool   // a worker was created from it
}

// Exit tells how a worker ended.
type Exit struct {
	Code      int    // its exit code; 128 + the signal when a signal ended it
	Signal    string // such as "SIGKILL"; "" when it ended by itself
	OOMKilled bool   // it met its memory limit
	OverDisk  bool   // its launcher killed it because it took more disk than it may
	At        time.Time
	Unknown   bool // it is gone, but nobody was there to see how
}

// String describes the end for people.
func (e Exit) String() string {
	if e.Unknown {
		return "ended while no host was watching"
	}
	var b strings.Builder
	if e.Signal != "" {
		fmt.Fprintf(&b, "killed by %s", e.Signal)
	} else {
		fmt.Fprintf(&b, "exit code %d", e.Code)
	}
	if e.OOMKilled {
		b.WriteString(", out of memory")
	}
	if e.OverDisk {
		b.WriteString(", over its disk limit")
	}
	return b.String()
}

// Launcher runs workers. Its methods are safe for concurrent use, calls for
// one worker are serialised, and a cancelled ctx ends the waiting but never
// undoes what was done: repeat the call to reach its end.
//
// Errors wrap worker.ErrNotFound for a worker that was never created (or is
// removed), worker.ErrConflict for what would make a twin, worker.ErrInvalid
// for a Spec that cannot be run and worker.ErrUnavailable while what the
// launcher stands on is away.
type Launcher interface {
	// Prepare makes image ready to run and returns the digest of the container
	// image made from it, or "" where there is none. It is idempotent.
	Prepare(ctx context.Context, image Image) (imageDigest string, err error)
	// ImageDigest is the digest that Prepare would return, found out without
	// making anything.
	ImageDigest(ctx context.Context, image Image) (string, error)
	// Artifacts lists what Prepare has made and Discard has not deleted, by kind
	// and binary; of a launcher that makes nothing, nothing.
	Artifacts(ctx context.Context) ([]Artifact, error)
	// Discard deletes all that Prepare made of a binary. While a worker is created
	// from it that is a worker.ErrConflict. It is idempotent; after it, Create
	// needs another Prepare.
	Discard(ctx context.Context, digest string) error
	// Create makes the worker known without running it. A worker that is known
	// already is a worker.ErrConflict: also where a host that died while it created
	// the same worker had it created after all, a moment after this one looked. What
	// confines it from its next Start on is then what this launcher would have made.
	Create(ctx context.Context, spec Spec) error
	// Warm does for a worker that is yet to be created what can be done before its
	// folder is whole: a Create of the same spec, but for Dir, takes that over if it
	// is sound, and leaves Start little to do. spec.Dir has RunDir, StateDir and
	// LogsDir; Create finds the very same folder under its own Dir. Until then the
	// worker counts as not known, but Remove removes what there is, and so does the
	// next launcher over the same data folder. A launcher that has nothing to do
	// beforehand says errors.ErrUnsupported.
	Warm(ctx context.Context, spec Spec) error
	// Start runs a created worker. While one is running, or its end was not
	// yet settled by Stop, that is a worker.ErrConflict.
	Start(ctx context.Context, serial worker.Serial) error
	// Wait blocks while the worker runs and tells how its last run ended; that
	// it ended is proven. It works for workers that an earlier host started, and
	// returns at once for one that is not running: after Stop with that run's
	// end, and with Unknown where no run is known.
	Wait(ctx context.Context, serial worker.Serial) (Exit, error)
	// Stop ends the worker: SIGTERM, and SIGKILL after grace. It returns once
	// the worker and all its children are proven gone. It is idempotent, and a
	// worker that is not known counts as stopped.
	Stop(ctx context.Context, serial worker.Serial, grace time.Duration) error
	// Remove forgets the worker, stopping it at once if it runs, and leaves no
	// trace of it outside its own folder. It is idempotent, and a worker that is
	// not known counts as removed.
	Remove(ctx context.Context, serial worker.Serial) error
	// List tells of all created workers of this host, ordered by serial, and of what
	// else lies among them: it is for the caller to know which are its own.
	List(ctx context.Context) ([]Status, error)
	// Usage is what the worker's processes use at this moment, all together. It is
	// cheap. worker.ErrNotFound is a worker that does not run, or a launcher that
	// does not count.
	Usage(ctx context.Context, serial worker.Serial) (worker.Usage, error)
	// Name is the launcher's word in records: "process" or "containerd".
	Name() string
	// Close detaches: workers stay, waiters return. Later calls fail.
	Close() error
	// Down ends what the launcher itself runs and deletes its own folders. It
	// refuses with worker.ErrConflict while workers are left. Close it after.
	Down(ctx context.Context) error
}
