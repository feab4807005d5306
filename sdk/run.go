package sdk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// runner is one worker while it lives. Its methods are the worker plane.
type runner struct {
	workerv1.UnimplementedWorkerServiceServer
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

var _ workerv1.WorkerServiceServer = (*runner)(nil)

// ServeWorker is the worker whose folder is dir, until ctx ends; then it finishes
// what is in flight, within 5 s, and returns nil. Serve calls it; tests do
// through sdk/workertest. t must not be served twice. An error says why the
// worker could not start or go on. A folder that is not as its forge made it is
// no error: the worker then tells its host so, refuses every envelope, and
// ends with an error when the folder has been mended.
func ServeWorker(ctx context.Context, t Type, dir string, log hclog.Logger) error {
	c, err := t.check()
	if err != nil {
		return fmt.Errorf("check type: %w", err)
	}
	return c.serveDir(ctx, dir, log)
}

func (c *checkedType) serveDir(ctx context.Context, dir string, log hclog.Logger) error {
	f, err := openFolder(dir)
	if err != nil {
		return err
	}
	defer f.root.Close()
	if f.identity.WorkerType != c.Name {
		return fmt.Errorf("start worker: %s is of type %s, this binary is %s", f.identity.WorkerSerial, f.identity.WorkerType, c.Name)
	}
	return c.serveFolder(ctx, f, dir, log.With("serial", f.identity.WorkerSerial))
}

// serveFolder is the whole life of a worker, in order.
func (c *checkedType) serveFolder(ctx context.Context, f *folder, dir string, log hclog.Logger) (err error) {
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
	listener, err := listen(f.root, dir)
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
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(f.tls)),
		grpc.MaxRecvMsgSize(wire.MaxMessage),
		grpc.WaitForHandlers(true),
	)
	workerv1.RegisterWorkerServiceServer(server, r)
	return r.serve(ctx, server, listener, endTasks)
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

// listen makes the worker's socket, in place of one that an earlier process
// left.
func listen(root *os.Root, dir string) (net.Listener, error) {
	if err := root.Remove(wire.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	path := filepath.Join(dir, wire.Socket)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), listener.Close())
	}
	return listener, nil
}

// serve answers the host until ctx ends, or the server does.
func (r *runner) serve(ctx context.Context, server *grpc.Server, listener net.Listener, endTasks func()) error {
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	r.streams.Go(r.rest)
	r.worker.log.Info("worker started", "type", r.typ.Name, "version", r.typ.Version)
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		err = fmt.Errorf("serve worker: %w", err)
	case <-r.integrity.mended:
		err = errors.New("the fault in the worker's folder is mended: it has to start again")
	}
	r.end(server, endTasks)
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
