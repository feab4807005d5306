// Package process runs workers as plain processes of the machine.
//
// It isolates nothing: a worker sees the machine's files, network and
// processes as far as its uid may, and none of its limits is enforced. When the
// host is root each worker has a uid of its own and cannot read another
// worker's keys; otherwise all workers share the host's uid, and they can. Use
// it where containerd cannot be had.
//
// What a worker gets: its folder as descriptor 3 (DALS_WORKER_DIR says
// /proc/self/fd/3, which works below folders that its uid may not enter), an
// environment of DALS_WORKER_DIR and DALS_WORKER_MARK, no standard input, its
// log file as standard output and error, its own binary as descriptor 5, "/" as
// working directory, umask 077, a session of its own, no supplementary groups,
// no new privileges.
//
// No twin: descriptor 4 of a worker is its lock file, locked. The kernel hands
// the lock over at fork and drops it with the last process that has it open,
// so a host that dies between fork and writing the record down leaves a run
// that the next host cannot miss: the lock is held, and the mark in the
// environment says by whom. Processes that a worker leaves behind are found by
// uid (where it is the worker's own), by mark and by lock. A worker under the
// host's uid that clears both from a child of its own can hide that child.
//
// Records lie in <data>/process, one JSON file and one lock file per worker.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/turn"
	"github.com/dals-host/dals-host/host/worker"
)

// Name is the launcher's word in records.
const Name = "process"

// Config is what the launcher needs.
type Config struct {
	DataDir string // the host's data folder, absolute
	HostID  string // tells this host's workers from another host's
	Logger  hclog.Logger
}

// Launcher runs workers as processes. It is a launch.Launcher.
type Launcher struct {
	log  hclog.Logger
	dir  string // <data>/process
	host string

	turns    turn.Keys[worker.Serial]
	watchers sync.WaitGroup
	closing  chan struct{}

	mu      sync.Mutex
	closed  bool
	workers map[worker.Serial]entry
}

// entry is one created worker. run is nil unless rec.Run is set and that
// process could be held, or ended under our eyes.
type entry struct {
	rec record
	run *run
}

var _ launch.Launcher = (*Launcher)(nil)

// New opens the launcher over the data folder and takes hold of the workers
// that earlier hosts left running. An unreadable record is worker.ErrCorrupt.
func New(ctx context.Context, cfg Config) (*Launcher, error) {
	l := &Launcher{
		log:     cfg.Logger.Named(Name),
		dir:     filepath.Join(cfg.DataDir, "process"),
		host:    cfg.HostID,
		closing: make(chan struct{}),
		workers: make(map[worker.Serial]entry),
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make launcher folder: %w", err)
	}
	records, err := loadRecords(l.dir)
	if err != nil {
		return nil, err
	}
	for _, rec := range records {
		if err := l.adopt(ctx, rec); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Name is the launcher's word in records.
func (l *Launcher) Name() string { return Name }

// Prepare checks that the image's binary is there. There is no container image.
func (l *Launcher) Prepare(_ context.Context, image launch.Image) (string, error) {
	f, err := openBinary(image.Path)
	if err != nil {
		return "", err
	}
	return "", f.Close()
}

// Create writes the worker's record.
func (l *Launcher) Create(ctx context.Context, spec launch.Spec) error {
	if err := check(spec); err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	done, err := l.take(ctx, spec.Serial)
	if err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	defer done()
	if _, ok := l.get(spec.Serial); ok {
		return fmt.Errorf("create %s: it exists: %w", spec.Serial, worker.ErrConflict)
	}
	rec := record{Spec: spec}
	if err := rec.save(l.dir); err != nil {
		return fmt.Errorf("create %s: %w", spec.Serial, err)
	}
	l.put(entry{rec: rec})
	return nil
}

func check(spec launch.Spec) error {
	if _, err := worker.ParseSerial(string(spec.Serial)); err != nil {
		return err
	}
	if !filepath.IsAbs(spec.Dir) || !filepath.IsAbs(spec.Image.Path) {
		return fmt.Errorf("relative path: %w", worker.ErrInvalid)
	}
	switch host := os.Geteuid(); {
	case spec.UID == 0:
		return fmt.Errorf("a worker never runs as root: %w", worker.ErrInvalid)
	case host != 0 && spec.UID != host:
		return fmt.Errorf("uid %d, but the host may only use its own, %d: %w", spec.UID, host, worker.ErrInvalid)
	}
	return nil
}

// Start runs the worker's binary. When it returns without error the run is on
// record.
func (l *Launcher) Start(ctx context.Context, serial worker.Serial) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("start %s: %w", serial, err)
	}
	defer done()
	e, ok := l.get(serial)
	if !ok {
		return fmt.Errorf("start %s: %w", serial, worker.ErrNotFound)
	}
	if e.rec.Run != nil {
		return fmt.Errorf("start %s: its last run is not settled by a stop: %w", serial, worker.ErrConflict)
	}
	if err := l.start(ctx, e.rec); err != nil {
		return fmt.Errorf("start %s: %w", serial, err)
	}
	return nil
}

func (l *Launcher) start(ctx context.Context, rec record) error {
	lock, err := takeLock(ctx, l.lockPath(rec.Spec.Serial))
	if err != nil {
		return err
	}
	defer lock.Close() // the worker's own copy keeps it locked
	left, err := l.members(rec.Spec)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("processes %v of an earlier run are left: %w", left, worker.ErrConflict)
	}
	proc, err := spawn(rec.Spec, lock, l.mark(rec.Spec.Serial))
	if err != nil {
		return err
	}
	id := proc.Identity()
	rec.Run, rec.Exit = &id, nil
	if err := rec.save(l.dir); err != nil {
		return errors.Join(err, discard(proc))
	}
	l.watch(rec, proc)
	return nil
}

// Wait blocks while the worker runs. The end of a worker that an earlier host
// started is seen, but its exit code is not: such an Exit is Unknown.
func (l *Launcher) Wait(ctx context.Context, serial worker.Serial) (launch.Exit, error) {
	e, ok := l.get(serial)
	if !ok {
		return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, worker.ErrNotFound)
	}
	if e.run == nil {
		return e.rec.exit(), nil
	}
	select {
	case <-e.run.ended:
		return e.run.exit, nil
	case <-ctx.Done():
		return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, ctx.Err())
	case <-l.closing:
		return launch.Exit{}, fmt.Errorf("wait for %s: %w", serial, errClosed)
	}
}

// Stop ends the worker and every process that it left behind.
func (l *Launcher) Stop(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("stop %s: %w", serial, err)
	}
	defer done()
	e, ok := l.get(serial)
	if !ok {
		return nil
	}
	if err := l.settle(ctx, e, grace); err != nil {
		return fmt.Errorf("stop %s: %w", serial, err)
	}
	return nil
}

// settle proves that the worker's last run is over and writes down its end.
func (l *Launcher) settle(ctx context.Context, e entry, grace time.Duration) error {
	if e.run != nil {
		if err := e.run.end(ctx, grace); err != nil {
			return err
		}
	}
	if err := l.clear(ctx, e.rec.Spec); err != nil {
		return err
	}
	if e.rec.Run == nil {
		return nil
	}
	exit := launch.Exit{Unknown: true}
	if e.run != nil {
		exit = e.run.exit
	}
	e.rec.Run, e.rec.Exit = nil, &exit
	if err := e.rec.save(l.dir); err != nil {
		return err
	}
	l.put(entry{rec: e.rec})
	return nil
}

// Remove ends the worker and deletes its record.
func (l *Launcher) Remove(ctx context.Context, serial worker.Serial) error {
	done, err := l.take(ctx, serial)
	if err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	defer done()
	e, ok := l.get(serial)
	if !ok {
		return nil
	}
	if err := l.settle(ctx, e, 0); err != nil {
		return fmt.Errorf("remove %s: %w", serial, err)
	}
	// The record goes last: while it is there, a repeated Remove finds the lock.
	for _, path := range []string{l.lockPath(serial), recordPath(l.dir, serial)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", serial, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.workers, serial)
	return nil
}

// List tells of all created workers.
func (l *Launcher) List(context.Context) ([]launch.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("list workers: %w", errClosed)
	}
	list := make([]launch.Status, 0, len(l.workers))
	for e := range maps.Values(l.workers) {
		s := launch.Status{Serial: e.rec.Spec.Serial}
		if e.run != nil && !e.run.proc.Ended() {
			s.Running, s.PID = true, e.rec.Run.PID
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b launch.Status) int { return cmp.Compare(a.Serial, b.Serial) })
	return list, nil
}

// Close lets go of the workers without touching them.
func (l *Launcher) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.closing)
	var errs []error
	for _, e := range l.workers {
		if e.run != nil {
			errs = append(errs, e.run.release())
		}
	}
	l.mu.Unlock()
	l.watchers.Wait()
	return errors.Join(errs...)
}

// Down deletes the launcher's folder.
func (l *Launcher) Down(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.workers); n > 0 {
		return fmt.Errorf("take launcher down: %d workers are left: %w", n, worker.ErrConflict)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("take launcher down: %w", err)
	}
	return nil
}

var errClosed = fmt.Errorf("launcher is closed: %w", worker.ErrUnavailable)

func (l *Launcher) take(ctx context.Context, serial worker.Serial) (func(), error) {
	done, err := l.turns.Take(ctx, serial)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		done()
		return nil, errClosed
	}
	return done, nil
}

func (l *Launcher) get(serial worker.Serial) (entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.workers[serial]
	return e, ok
}

func (l *Launcher) put(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workers[e.rec.Spec.Serial] = e
}
