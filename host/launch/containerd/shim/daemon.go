package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/sdk/idle"
)

// linger is how long a daemon stays whose group is empty: the next container is
// often not far.
const linger = 2 * time.Second

// rest is the time between two times that a daemon gives back memory: of most daemons
// nobody wants anything.
const rest = 30 * time.Second

// daemon is the parent of a group's containers.
type daemon struct {
	namespace string
	folder    string // of the group

	mu   sync.Mutex
	all  map[string]*container
	idle *time.Timer // runs while there is no container
}

// serve is the daemon of a group, until the group is empty.
func serve(c command) error {
	// The containers' first processes are the runtime's children, and ours when it ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of containers: %w", err)
	}
	signal.Ignore(unix.SIGINT, unix.SIGHUP)
	told := make(chan os.Signal, 1) // to end; as long as it has workers it does not
	signal.Notify(told, unix.SIGTERM)
	listener, err := inherited()
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return err
	}
	d := &daemon{namespace: c.namespace, folder: c.group, all: map[string]*container{}}
	d.idle = time.AfterFunc(linger, func() { d.endIfEmpty(server) })
	go func() {
		for range told {
			d.endIfEmpty(server)
		}
	}()
	task.RegisterTTRPCTaskService(server, service{daemon: d})
	debug.SetGCPercent(50) // there is little to collect, and what there is stays
	go func() {
		for range time.Tick(rest) {
			idle.GiveBack()
		}
	}()
	err = server.Serve(context.Background(), listener)
	if errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

// inherited is the group's listener. No container may have it: while one did, a group
// whose daemon is lost would seem to live.
func inherited() (net.Listener, error) {
	const socket = 3 // the first that is not a standard one
	unix.CloseOnExec(socket)
	file := os.NewFile(socket, "listener")
	defer file.Close()
	return net.FileListener(file)
}

// endIfEmpty ends the daemon when nobody is in its group and, by the lock, nobody
// joins it.
func (d *daemon) endIfEmpty(server *ttrpc.Server) {
	g := groups{filepath.Dir(d.folder)}
	unlock, err := g.lock() // before d.mu: who has it may ask the daemon something
	if err == nil {
		defer unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.all) > 0 {
		return // its deletion asks again
	}
	if err == nil {
		err = g.remove(filepath.Base(d.folder))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // somebody is in it who has not come yet
		d.idle.Reset(linger)
		return
	}
	_ = server.Close()
}

// add makes room for a container that is about to be made. One that was settled in the
// meantime is in no group any more, and is not made.
func (d *daemon) add(c *container) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[c.id] != nil {
		return status.Errorf(codes.AlreadyExists, "container %s exists", c.id)
	}
	if _, err := os.Lstat(filepath.Join(d.folder, c.id)); err != nil {
		return status.Errorf(codes.FailedPrecondition, "container %s is not in the group: %v", c.id, err)
	}
	d.all[c.id] = c
	return nil
}

func (d *daemon) find(id string) (*container, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.all[id]; c != nil {
		return c, nil
	}
	return nil, notFound(id)
}

// forget drops a container that could not be made.
func (d *daemon) forget(c *container) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, c.id)
	d.rest()
}

// dismiss takes a container of which nothing is left out of the group: one that was
// deleted, or that has yet to come and must not.
func (d *daemon) dismiss(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.all[id]; c != nil && !c.gone.Load() {
		return nil // it came again
	}
	delete(d.all, id)
	d.rest()
	return leave(d.folder, id)
}

// rest has the daemon end soon if it has nothing to do.
func (d *daemon) rest() {
	if len(d.all) == 0 {
		d.idle.Reset(linger)
	}
}

func notFound(id string) error { return status.Errorf(codes.NotFound, "container %s not found", id) }
