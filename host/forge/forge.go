// Package forge makes workers and ends them.
//
// Forge is a list of steps, each with an undo. The first durable one writes the
// worker's row in state forging, the last turns it live in the transaction that
// records the forge: the row is the journal. A forge that fails undoes its
// steps in reverse, and nothing of the worker is left but the entry that says
// that its ledger code is void. Where an undo fails, or the host dies in the
// middle, the row stays in state forging: Recover at the next start, and Run
// again and again, undo all steps of such a row. That works because every
// undo is idempotent and takes "not there" for success.
//
// Retire is the other direction and only rolls forward: its row is in state
// retiring until everything is gone. Upgrade is a list of steps as Forge is, and
// rolls back: its row is in state upgrading, and says what the worker was, until
// the last. Of a worker that is stopped, or failed, nothing may run: what a host
// that died in the middle of Stop or Start left running, Recover ends.
//
// Whatever is done to one name is done in turns: a second call waits for the
// first, and then finds what that made.
//
// What package forge does not do: it keeps no worker alive (package supervise)
// and decides nothing about plugins (package catalog).
package forge

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/internal/turn"
	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Types finds registered worker types.
type Types interface {
	// Lookup finds a version of a type, or with an empty version its default.
	Lookup(ctx context.Context, name, version string) (Type, error)
}

// Type is a registered worker type, as the forge needs it.
type Type struct {
	Descriptor *workerv1.TypeDescriptor
	Image      launch.Image
}

// Sessions connects workers to the broker.
type Sessions interface {
	Attach(w worker.Worker, dir string)
	// Drain waits until the worker owes nothing of what it was sent, it cannot give
	// it any more, or ctx ends.
	Drain(ctx context.Context, serial worker.Serial)
	Detach(ctx context.Context, serial worker.Serial)
	AwaitHeartbeat(ctx context.Context, serial worker.Serial, since time.Time) error
}

// Keeper keeps workers alive once they exist.
type Keeper interface {
	// Keep takes over a worker that has become live.
	Keep(w worker.Worker)
	// Release gives a worker up and returns once nothing acts on it any more.
	Release(serial worker.Serial)
}

// Ports holds the listeners that belong to workers.
type Ports interface {
	// Bind takes a free port for a worker that is yet to get its serial.
	Bind(ctx context.Context) (*ports.Listener, error)
	// Assign serves the worker's health on the listener until Release.
	Assign(serial worker.Serial, l *ports.Listener)
	Release(serial worker.Serial)
}

// Config is what a Forge needs.
type Config struct {
	Types      Types
	Registry   *registry.Registry
	Stage      *stage.Store
	Ports      Ports
	Keys       *keyring.Keyring
	Authority  *identity.Authority
	Launcher   launch.Launcher
	Sessions   Sessions
	Keeper     Keeper
	Checkpoint func() (note []byte, size uint64) // the record's, as published last
	// Changed hears of a worker that was forged or retired.
	Changed func(worker.Serial)
	// UIDs is the range that workers' uids are taken from; zero for a host that
	// is not root, whose workers run as the host's own uid, OwnUID.
	UIDs   UIDRange
	OwnUID int
	// Own are folders of the host's that no worker may be granted, nor what they
	// lie in.
	Own []string
	// Spec says how to run a worker, from what its row says.
	Spec func(worker.Worker) launch.Spec
	// Warm says of how many workers, by type, a part is made beforehand.
	Warm   map[string]int
	Logger hclog.Logger
}

// UIDRange is a range of uids, both ends included.
type UIDRange struct{ Low, High int }

// Forge makes and ends workers. It is safe for concurrent use.
type Forge struct {
	Config
	turns   turn.Keys[string] // by name
	leases  *leases
	work    *underWay
	warmth  *warmth
	warming *underWay     // KeepWarm
	slots   chan struct{} // full when no more workers may be in the making
	left    chan struct{} // holds one word when something was left open
}

// forgesPerCPU bounds how many workers are in the making at a time: beyond a few
// for each CPU nothing is done sooner, and the workers that there are lose their
// heartbeats to those that start.
const forgesPerCPU = 8

// New makes a Forge.
func New(c Config) *Forge {
	return &Forge{Config: c, leases: newLeases(), work: newUnderWay(), warmth: newWarmth(), warming: newUnderWay(), slots: make(chan struct{}, forgesPerCPU*runtime.GOMAXPROCS(0)), left: make(chan struct{}, 1)}
}

// Request asks for one worker.
type Request struct {
	Name      string
	Type      string
	ClassCode string
	Version   string        // empty for the type's default version
	Config    []byte        // a JSON object, or empty for the type's defaults
	Timeout   time.Duration // bounds the forge; zero means DefaultTimeout
	// PlanHash, when given, is that of the plan that was agreed to: what has
	// changed since is a conflict that names it, and nothing is made.
	PlanHash string
	// Like names a worker, by name or serial, whose type, version, class code,
	// configuration, grants and limits hold where the request leaves them empty.
	Like    string
	NoStart bool // the worker is made, and stopped
	// Grants are what the worker may do beyond its own folder, of what its type
	// asks for, as sdk/capability writes them. Folders are given by Mounts,
	// SOURCE:PLACE[:ro], and become grants.
	Grants []string
	Mounts []string
	// Limits are what it may use, where that is not to be what its type says.
	Limits worker.Limits
}

// DefaultTimeout bounds a forge whose caller names no time.
const DefaultTimeout = time.Minute

func (r Request) timeout() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return DefaultTimeout
}

// Result is a worker that exists.
type Result struct {
	Worker  worker.Worker
	Existed bool // the same request had made it before
}

// job is one forge on its way.
type job struct {
	what      string // "forge" or "upgrade"
	request   Request
	worker    worker.Worker // as it shall be
	was       worker.Worker // of an upgrade: as it is
	grace     time.Duration // of an upgrade: for the old version to end
	within    time.Duration // of an upgrade: for the new one to become healthy
	opened    bool          // of an upgrade: its journal was
	typ       Type
	listener  *ports.Listener
	folder    *stage.Stage
	onDisk    func() error // waits until the promoted folder is
	slot      *slot        // that it has claimed; nil for none
	startedAt time.Time
	logged    int64  // the size of the worker's log then
	why       error  // while undoing: what failed
	release   func() // gives back the lease of the binary
}

type step struct {
	name  string
	do    func(context.Context, *job) error
	undo  func(context.Context, *job) error // nil where an earlier undo covers it
	makes func(*job) string                 // what the plan says of it
}

// steps is the forge. The order is the design: numbers before files, files
// before the container, and the record last.
func (f *Forge) steps() []step {
	return []step{
		{"allocate", f.allocate, f.release, planAllocate},
		{"open stage", f.openStage, f.dropStage, planStage},
		{"generate keys", f.generateKeys, nil, f.planKeys},
		{"inject", f.inject, nil, planInject},
		{"prepare image", f.prepareImage, nil, f.planImage},
		{"write manifest", f.writeManifest, nil, planManifest},
		{"promote stage", f.promote, f.demote, planPromote},
		{"create container", f.create, f.remove, f.planCreate},
		{"start", f.start, f.stop, planStart},
		{"await heartbeat", f.awaitHeartbeat, f.detach, planHeartbeat},
		{"record", f.record, nil, planRecord},
	}
}

// stepsOf are the steps that a request takes. A worker that is not to be started
// gets its container when it is.
func (f *Forge) stepsOf(r Request) []step {
	return slices.DeleteFunc(f.steps(), func(s step) bool {
		return r.NoStart && slices.Contains([]string{"create container", "start", "await heartbeat"}, s.name)
	})
}

// Forge makes one worker, or leaves nothing behind. The same request for the
// same name gives the worker that it made before; while a first call is running
// a second waits for its outcome.
func (f *Forge) Forge(ctx context.Context, r Request) (Result, error) {
	r, err := f.resolve(ctx, r)
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	done, err := f.take(ctx, r.Name)
	if err != nil {
		return Result{}, err
	}
	defer done()
	existing, found, err := f.existing(ctx, r)
	if err == nil && found {
		err = f.holdTo(r.PlanHash, existing)
	}
	if err != nil || found {
		return Result{Worker: existing, Existed: found}, err
	}
	j, err := f.newJob(ctx, r)
	if err != nil {
		return Result{}, err
	}
	defer j.release()
	if err := f.holdJobTo(ctx, r.PlanHash, j); err != nil {
		return Result{}, err
	}
	leave, err := f.enter(ctx)
	if err != nil {
		return Result{}, err
	}
	defer leave()
	if err := f.run(ctx, j, f.stepsOf(r)); err != nil {
		return Result{}, err
	}
	f.Ports.Assign(j.worker.Serial, j.listener)
	if !r.NoStart {
		f.Keeper.Keep(j.worker)
	}
	f.Changed(j.worker.Serial)
	return Result{Worker: j.worker}, nil
}

// run goes through the steps, and back when one fails. The failed step is
// undone too: it may have done half of its work.
func (f *Forge) run(ctx context.Context, j *job, steps []step) error {
	ctx, cancel := until(ctx, f.work.over)
	defer cancel()
	for i, s := range steps {
		began := time.Now()
		err := ctx.Err()
		if err == nil {
			failpoint.Hit(j.what, s.name, "before")
			err = s.do(ctx, j)
			failpoint.Hit(j.what, s.name, "after")
		}
		if err != nil {
			j.why = fmt.Errorf("%s: %w", s.name, because(ctx, err))
			defer j.close()
			return errors.Join(j.why, f.undo(ctx, j, steps[:i+1]))
		}
		f.Logger.Debug(j.what+" step", "worker", j.request.Name, "step", s.name, "took", time.Since(began))
	}
	return nil
}

// undoTimeout bounds the undoing of one forge; it may have to kill a worker.
const undoTimeout = 30 * time.Second

func (f *Forge) undo(ctx context.Context, j *job, done []step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for _, d := range slices.Backward(done) {
		if d.undo == nil {
			continue
		}
		failpoint.Hit("undo", d.name, "before")
		err := d.undo(ctx, j)
		failpoint.Hit("undo", d.name, "after")
		if err != nil {
			// What is left of the worker stays in the journal, and its numbers stay
			// taken, until Run or the next start succeeds.
			f.leave()
			return fmt.Errorf("undo %s: %w; the host goes on trying", d.name, err)
		}
	}
	return nil
}

// close lets go of what the job holds of this process.
func (j *job) close() {
	if j.listener != nil {
		_ = j.listener.Close() // a closed listener has no news
	}
	if j.folder != nil {
		_ = j.folder.Close() // and what was promoted is closed
	}
}
