// Package workerlog keeps what workers print within bounds, and reads it.
//
// A worker's output goes into one file, which whoever writes it holds open for
// as long as the worker runs: containerd's shim, or the worker itself. So the file
// cannot be renamed away. Once it is longer than MaxBytes its beginning is moved
// to a second file beside it, which replaces the one before and is at most twice
// MaxBytes long: a worker has at most three times MaxBytes, and what it prints
// between two looks. Nobody who writes waits for this, and nobody who keeps logs has
// to live for a worker to write.
//
// Where the file system can take a beginning away in place (ext4, xfs), no byte is
// lost. Elsewhere the file is copied and cut, and what is printed in the instant
// between the two is lost. Of a worker that floods, which has printed more than
// twice MaxBytes since the last look, only the last MaxBytes are kept.
package workerlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/worker"
)

// MaxBytes is how long a worker's log may become before its beginning is moved
// away.
const MaxBytes = 8 << 20

// How often logs are looked at: at rest, and while one grows fast.
const (
	lookEvery = time.Second
	lookSoon  = 50 * time.Millisecond
)

// Folders are the workers' folders.
type Folders interface {
	Instances() ([]worker.Serial, error)
	Dir(serial worker.Serial) string
	OpenRoot(serial worker.Serial) (*os.Root, error)
}

// Logs are the logs of all workers of one data folder. At any time only one
// process may bound them, and readers must be of the same Logs. It is safe for
// concurrent use.
type Logs struct {
	folders Folders
	path    string // of the log in a worker's folder
	max     int64
	log     hclog.Logger

	mu  sync.RWMutex // held to write while a file's beginning goes
	cut map[worker.Serial]cut
}

// cut is what went of a log.
type cut struct {
	bytes int64     // since New
	away  time.Time // when the worker's folder was missed first; zero while it is there
}

// New looks after the logs at path in the workers' folders.
func New(folders Folders, path string, log hclog.Logger) *Logs {
	return &Logs{folders: folders, path: path, max: MaxBytes, log: log, cut: map[worker.Serial]cut{}}
}

// Run bounds all logs again and again until ctx ends. What is wrong with one log
// is logged once, and is that one's alone.
func (l *Logs) Run(ctx context.Context) error { return l.run(ctx, false) }

// RunWhileWorkers is Run, and ends when there is no worker any more.
func (l *Logs) RunWhileWorkers(ctx context.Context) error { return l.run(ctx, true) }

func (l *Logs) run(ctx context.Context, whileWorkers bool) error {
	sizes, told, blind := map[worker.Serial]int64{}, map[worker.Serial]bool{}, false
	for {
		wait := lookEvery
		switch serials, err := l.folders.Instances(); {
		case err == nil:
			var fast bool
			if sizes, fast = l.look(serials, sizes, told); fast {
				wait = lookSoon
			}
			if blind = false; whileWorkers && len(serials) == 0 {
				return nil
			}
		case !blind:
			l.log.Warn("workers' logs not looked at", "error", err)
			blind = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// look bounds the logs of these workers once. It returns how long they are now, and
// whether one has grown so fast since before that it should be looked at again soon.
// told has those whose faults are known.
func (l *Logs) look(serials []worker.Serial, before map[worker.Serial]int64, told map[worker.Serial]bool) (sizes map[worker.Serial]int64, fast bool) {
	sizes = make(map[worker.Serial]int64, len(serials))
	for _, serial := range serials {
		size, err := l.bound(serial)
		switch {
		case err == nil:
			delete(told, serial)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, worker.ErrNotFound) && !told[serial]:
			l.log.Warn("log of a worker is not bounded", "serial", serial, "error", err)
			told[serial] = true
		}
		fast = fast || size-before[serial] > l.max/4
		sizes[serial] = size
		if size > l.max && err == nil {
			sizes[serial] = 0
		}
	}
	l.forget(sizes)
	return sizes, fast
}

// forgetAfter is how long a worker's folder is away before the worker is no more: that
// of one that is upgraded is, for a moment.
const forgetAfter = time.Hour

// forget drops what is known of workers that are no more.
func (l *Logs) forget(known map[worker.Serial]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for serial, c := range l.cut {
		switch _, ok := known[serial]; {
		case ok:
			c.away = time.Time{}
		case c.away.IsZero():
			c.away = time.Now()
		case time.Since(c.away) > forgetAfter:
			delete(l.cut, serial)
			continue
		}
		l.cut[serial] = c
	}
}

// bound moves the beginning of a log away that has become too long. It returns how
// long the log was.
func (l *Logs) bound(serial worker.Serial) (int64, error) {
	info, err := os.Lstat(filepath.Join(l.folders.Dir(serial), l.path))
	if err != nil {
		return 0, err
	}
	if info.Size() <= l.max || !info.Mode().IsRegular() {
		return info.Size(), nil
	}
	if err := l.rotate(serial); err != nil {
		return info.Size(), fmt.Errorf("rotate log: %w", err)
	}
	return info.Size(), nil
}
