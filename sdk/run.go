package sdk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
)

// runner is one worker while it lives, behind its lobby.
type runner struct {
	typ       *checkedType
	worker    *Worker
	integrity *integrity
	gate      *gate
	desk      *desk
	started   time.Time
	beats     atomic.Uint64

	tasks   context.Context // the lifetime of tasks
	stopped chan struct{}   // closed when no heartbeat shall follow
	streams sync.WaitGroup  // the goroutines of streams, and rest
}

// ServeWorker is the worker whose folder is dir, until ctx ends; then it finishes
// what is in flight, within 5 s, and returns nil. Serve calls it; tests do
// through sdk/workertest. t must not be served twice. An error says why the
// worker could not start or go on. A folder that is not as its forge made it is
// no error: the worker then tells its host so, refuses every envelope, and
// ends with an error when the folder has been mended.
func ServeWorker(ctx context.Context, t Type, dir string, log hclog.Logger) error {
	return t.serveDir(ctx, t.check, dir, log)
}

// serveDir is ServeWorker with the check that t still needs.
func (t Type) serveDir(ctx context.Context, check func() (*checkedType, error), dir string, log hclog.Logger) error {
	f, err := openFolder(dir)
	if err != nil {
		return err
	}
	defer f.root.Close()
	if f.identity.WorkerType != t.Name {
		return fmt.Errorf("start worker: %s is of type %s, this binary is %s", f.identity.WorkerSerial, f.identity.WorkerType, t.Name)
	}
	lobby, err := openLobby(f, dir)
	if err != nil {
		return err
	}
	defer lobby.close()
	c, err := check()
	if err != nil {
		return fmt.Errorf("check type: %w", err)
	}
	return c.serveFolder(ctx, f, lobby, dir, log.With("serial", f.identity.WorkerSerial))
}

// serveFolder is the whole life of a worker, in order.
func (c *checkedType) serveFolder(ctx context.Context, f *folder, lobby *lobby, dir string, log hclog.Logger) (err error) {
	tasks, endTasks := context.WithCancel(context.WithoutCancel(ctx))
	defer endTasks()
	w := &Worker{identity: *f.identity, key: f.key, dir: dir, log: log}
	integrity := newIntegrity(f, c.bounds.recheck, log)
	defer integrity.looks.Wait()
	if !integrity.sealed {
		var leave func()
		if leave, err = w.useGrants(f); err != nil {
			return err
		}
		defer leave()
		stop := context.AfterFunc(ctx, endTasks) // opening heeds the end of ctx; tasks are given a grace
		err = c.open(tasks, f, w)
		stop()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
	}
	kept, err := openResults(f, c.bounds, log)
	if err != nil {
		return err
	}
	r := &runner{
		typ:       c,
		worker:    w,
		integrity: integrity,
		gate:      &gate{identity: f.identity},
		desk:      newDesk(kept, log),
		started:   time.Now(),
		tasks:     tasks,
		stopped:   make(chan struct{}),
	}
	return r.serve(ctx, lobby, endTasks)
}

// open configures the type and lets it open what it needs.
func (c *checkedType) open(ctx context.Context, f *folder, w *Worker) error {
	config, err := f.read(configFile)
	if err != nil {
		return err
	}
	if err := c.configure(config); err != nil {
		return fmt.Errorf("read %s: %w", configFile, err)
	}
	if c.Open == nil {
		return nil
	}
	if err := c.Open(ctx, w); err != nil {
		return fmt.Errorf("open worker type: %w", err)
	}
	return nil
}

func (c *checkedType) close() error {
	if c.Close == nil {
		return nil
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("close worker type: %w", err)
	}
	return nil
}

// serve answers the host until ctx ends, or the server does.
func (r *runner) serve(ctx context.Context, l *lobby, endTasks func()) error {
	l.admit(r)
	r.streams.Go(r.rest)
	r.worker.log.Info("worker started", "type", r.typ.Name, "version", r.typ.Version)
	var err error
	select {
	case <-ctx.Done():
	case err = <-l.ended:
		err = fmt.Errorf("serve worker: %w", err)
	case <-r.integrity.mended:
		err = errors.New("the fault in the worker's folder is mended: it has to start again")
	}
	r.end(l.server, endTasks)
	r.worker.log.Info("worker ended")
	return err
}

// end lets what is in flight finish and its results out, and then stops. It
// takes no longer than the grace, whatever tasks and host do.
func (r *runner) end(server *grpc.Server, endTasks func()) {
	ask := time.AfterFunc(r.typ.bounds.askAfter, endTasks)
	defer ask.Stop()
	late := time.AfterFunc(r.typ.bounds.grace, server.Stop)
	defer late.Stop()
	select {
	case <-r.desk.drain():
	case <-time.After(r.typ.bounds.grace):
	}
	r.desk.close()
	close(r.stopped)
	server.GracefulStop()
	r.streams.Wait()
}
