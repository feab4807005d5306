// Package forge makes workers and ends them.
//
// Forge is a list of steps, each with an undo. The first durable one writes the
// worker's row in state forging, the last turns it live in the transaction that
// records the forge: the row is the journal. A forge that fails undoes its
// steps in reverse; a host that dies in the middle leaves a row in state
// forging, and Recover undoes all steps of it at the next start. That works
// because every undo is idempotent and takes "not there" for success. Either
// way nothing of the worker is left but the entry that says that its ledger
// code is void.
//
// Retire is the other direction and only rolls forward: its row is in state
// retiring until everything is gone.
//
// What package forge does not do: it keeps no worker alive (package supervise)
// and decides nothing about plugins (package catalog).
package forge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

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
	// UIDs is the range that workers' uids are taken from; zero for a host that
	// is not root, whose workers run as the host's own uid, OwnUID.
	UIDs   UIDRange
	OwnUID int
	// Spec says how to run a worker, from what its row says.
	Spec   func(worker.Worker) launch.Spec
	Logger hclog.Logger
}

// UIDRange is a range of uids, both ends included.
type UIDRange struct{ Low, High int }

// Forge makes and ends workers. It is safe for concurrent use.
type Forge struct {
	Config
	running calls
}

// New makes a Forge.
func New(c Config) *Forge { return &Forge{Config: c, running: newCalls()} }

// Request asks for one worker.
type Request struct {
	Name      string
	Type      string
	ClassCode string
	Version   string        // empty for the type's default version
	Config    []byte        // a JSON object, or empty for the type's defaults
	Timeout   time.Duration // bounds the forge; zero means DefaultTimeout
}

// DefaultTimeout bounds a forge whose caller names no time.
const DefaultTimeout = time.Minute

// Result is a worker that exists.
type Result struct {
	Worker  worker.Worker
	Existed bool // the same request had made it before
}

// job is one forge on its way.
type job struct {
	request   Request
	class     worker.ClassCode
	worker    worker.Worker
	typ       Type
	listener  *ports.Listener
	folder    *stage.Stage
	startedAt time.Time
	why       error // while undoing: what failed
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
		{"generate keys", f.generateKeys, nil, planKeys},
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

// Forge makes one worker, or leaves nothing behind. The same request for the
// same name gives the worker that it made before; a second call while the first
// is running joins it.
func (f *Forge) Forge(ctx context.Context, r Request) (Result, error) {
	j, err := f.check(ctx, r)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, j.request.Timeout)
	defer cancel()
	return f.running.join(ctx, j.worker, func() (Result, error) {
		existing, err := f.existing(ctx, j.worker)
		if err != nil || existing.Worker.Serial != "" {
			return existing, err
		}
		if err := f.run(ctx, j); err != nil {
			return Result{}, err
		}
		f.Keeper.Keep(j.worker)
		return Result{Worker: j.worker}, nil
	})
}

// run goes through the steps, and back when one fails. The failed step is
// undone too: it may have done half of its work.
func (f *Forge) run(ctx context.Context, j *job) error {
	steps := f.steps()
	for i, s := range steps {
		began := time.Now()
		err := ctx.Err()
		if err == nil {
			err = s.do(ctx, j)
		}
		if err != nil {
			j.why = fmt.Errorf("%s: %w", s.name, err)
			return errors.Join(j.why, f.undo(ctx, j, steps[:i+1]))
		}
		f.Logger.Debug("forge step", "worker", j.request.Name, "step", s.name, "took", time.Since(began))
	}
	return nil
}

// undoTimeout bounds the undoing of one forge; it may have to kill a worker.
const undoTimeout = 30 * time.Second

func (f *Forge) undo(ctx context.Context, j *job, done []step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for i := len(done) - 1; i >= 0; i-- {
		if done[i].undo == nil {
			continue
		}
		if err := done[i].undo(ctx, j); err != nil {
			// What is left of the worker stays in the journal: the next start tries
			// again, and the numbers stay taken until it succeeds.
			return fmt.Errorf("undo %s: %w", done[i].name, err)
		}
	}
	return nil
}

// Recover brings every worker that an earlier host left half made or half
// retired to an end. It runs before the first Forge.
func (f *Forge) Recover(ctx context.Context) error {
	forging, err := f.Registry.Workers(ctx, registry.Filter{State: worker.StateForging})
	if err != nil {
		return fmt.Errorf("read open forges: %w", err)
	}
	var errs []error
	for _, w := range forging {
		f.Logger.Info("rolling back a forge that an earlier host left open", "worker", w.Name, "serial", w.Serial)
		j := &job{worker: w, why: errors.New("the host ended in the middle of the forge")}
		if err := f.undo(ctx, j, f.steps()); err != nil {
			errs = append(errs, fmt.Errorf("roll back forge of %s: %w", w.Name, err))
		}
	}
	retiring, err := f.Registry.Workers(ctx, registry.Filter{State: worker.StateRetiring})
	if err != nil {
		return fmt.Errorf("read open retirements: %w", err)
	}
	for _, w := range retiring {
		f.Logger.Info("finishing a retirement that an earlier host left open", "worker", w.Name, "serial", w.Serial)
		if _, err := f.finishRetire(ctx, w, 0); err != nil {
			errs = append(errs, fmt.Errorf("finish retiring %s: %w", w.Name, err))
		}
	}
	return errors.Join(errs...)
}
