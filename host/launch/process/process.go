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
// working directory, the folders that it was granted as descriptors from 6 on
// (DALS_WORKER_MOUNTS says which; that one may only read is not enforced), umask 077, a session of its own, no supplementary groups,
// no new privileges. The log is the worker's own word: with its descriptors it
// can write there what it likes, and truncate what is there.
//
// No twin: descriptor 4 of a worker is its lock file, locked. The kernel hands
// the lock over at fork and drops it with the last process that has it open,
// so a host that dies between fork and writing the record down leaves a run
// that the next host cannot miss: the lock is held, and the mark in the
// environment says by whom. Processes that a worker leaves behind are found by
// uid where it is the worker's own: it decides, so nothing else on the machine
// may use that uid. Under the host's uid they are found by mark and by lock, and
// a worker that clears both from a child of its own can hide that child.
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

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/internal/turn"
	"github.com/dals-host/dals-host/host/internal/whole"
	"github.com/dals-host/dals-host/host/launch"
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
	if err := whole.Clear(l.dir); err != nil {
		return nil, fmt.Errorf("open launcher folder: %w", err)
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
	if err := image.Check(); err != nil {
		return "", fmt.Errorf("prepare image: %w", err)
	}
	f, err := os.OpenFile(image.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", fmt.Errorf("open binary: %w", err)
	}
	return "", f.Close()
}

// ImageDigest is empty: there is no container image.
func (l *Launcher) ImageDigest(ctx context.Context, image launch.Image) (string, error) {
	return l.Prepare(ctx, image) // which makes nothing
}

// Artifacts is empty: workers run from the binary itself.
func (l *Launcher) Artifacts(context.Context) ([]launch.Artifact, error) { return nil, nil }

// Discard has nothing to delete.
func (l *Launcher) Discard(context.Context, string) error { return nil }

// List tells of all created workers.
func (l *Launcher) List(context.Context) ([]launch.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("list workers: %w", errClosed)
	}
	list := make([]launch.Status, 0, len(l.workers))
	for e := range maps.Values(l.workers) {
		image := e.rec.Spec.Image
		image.Path = ""
		s := launch.Status{Serial: e.rec.Spec.Serial, Unsettled: e.rec.Run != nil, Image: image}
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
	failpoint.Hit("process", "remove", "before")
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("take launcher down: %w", err)
	}
	failpoint.Hit("process", "remove", "after")
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
