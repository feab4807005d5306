package shim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
)

// container is one container of the group, and its first process.
type container struct {
	id, bundle string
	options    options
	runtime    runtime
	outputs    [2]*output // stdout, stderr
	names      [2]string  // of the files that they go to

	turn    sync.Mutex  // of who makes, starts or deletes it
	gone    atomic.Bool // it was deleted
	process *pidfd.Process
	plain   bool          // nothing but its program is to be run when it starts
	ended   chan struct{} // closed when the process has ended; code and at are set then
	code    uint32        // as shells tell it: above 128 is a signal
	at      time.Time

	mu    sync.Mutex
	state tasktypes.Status
}

func newContainer(id, bundle string, o options, namespace string, names [2]string) *container {
	return &container{id: id, bundle: bundle, names: names, ended: make(chan struct{}), options: o, runtime: o.runtime(namespace)}
}

// create makes the container, for who has its turn. Where that fails nothing is left
// of it.
func (c *container) create() (err error) {
	defer func() {
		if err != nil { // nobody waits for its end any more
			c.code, c.at = unknownEnd, time.Now()
			close(c.ended)
		}
	}()
	if err := c.options.save(c.bundle); err != nil {
		return err
	}
	if err := c.openOutputs(); err != nil {
		return err
	}
	if err := c.makeProcess(); err != nil {
		for _, o := range c.outputs {
			o.close()
		}
		if c.runtime.knows(c.id) {
			err = errors.Join(err, c.runtime.delete(c.bundle, c.id))
		}
		return err
	}
	for _, o := range c.outputs {
		_ = o.container.Close()
		go o.run()
	}
	c.plain = hookless(c.bundle)
	c.become(tasktypes.Status_CREATED)
	go c.reap()
	return nil
}

// makeProcess has the runtime make the container. Its first process is our child when
// the runtime has ended, and is held before anybody looks for orphans.
func (c *container) makeProcess() error {
	running.RLock()
	defer running.RUnlock()
	pid, err := c.runtime.create(c.bundle, c.id, c.outputs[0].container, c.outputs[1].container)
	if err != nil {
		return err
	}
	c.process, err = hold(pid)
	return err
}

func (c *container) openOutputs() (err error) {
	if c.outputs[0], err = openOutput(c.names[0]); err != nil {
		return err
	}
	if c.outputs[1], err = openOutput(c.names[1]); err != nil {
		c.outputs[0].close()
	}
	return err
}

func hold(pid int) (*pidfd.Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	return pidfd.Hold(fd, pid)
}

// unknownEnd is the exit code of a process whose own nobody can tell.
const unknownEnd = 255

// reap waits for the end of the container's first process.
func (c *container) reap() {
	how, known, err := c.process.Wait()
	c.code, c.at = unknownEnd, time.Now()
	if err == nil && known {
		c.code = uint32(how.ExitStatus())
		if how.Signaled() {
			c.code = 128 + uint32(how.Signal())
		}
	}
	c.become(tasktypes.Status_STOPPED)
	close(c.ended)
}

func (c *container) become(s tasktypes.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != tasktypes.Status_STOPPED {
		c.state = s
	}
}

func (c *container) is() tasktypes.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *container) start() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	if s := c.is(); s != tasktypes.Status_CREATED {
		return status.Errorf(codes.FailedPrecondition, "container %s is %s", c.id, s)
	}
	if err := c.letGo(); err != nil {
		return err
	}
	c.become(tasktypes.Status_RUNNING)
	return nil
}

// letGo has the first process execute the container's program.
func (c *container) letGo() error {
	if c.plain {
		if released, err := c.runtime.release(c.id); released || err != nil {
			return err
		}
	}
	return c.runtime.start(c.bundle, c.id)
}

// signal signals the first process. Its end is that of all others: it is the first
// of a pid namespace.
func (c *container) signal(s uint32) error {
	switch c.is() {
	case tasktypes.Status_UNKNOWN:
		return notFound(c.id)
	case tasktypes.Status_STOPPED:
		return status.Errorf(codes.NotFound, "container %s has ended", c.id)
	}
	if err := c.process.Signal(unix.Signal(s)); err != nil && c.is() != tasktypes.Status_STOPPED {
		return err
	}
	return nil
}

// outputTime bounds how long a deletion waits for what the container has printed:
// who reads a FIFO may have gone.
const outputTime = time.Second

// delete deletes a container that does not run.
func (c *container) delete() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	switch s := c.is(); {
	case c.gone.Load() || s == tasktypes.Status_UNKNOWN: // or it could not be made
		return notFound(c.id)
	case s == tasktypes.Status_RUNNING:
		return status.Errorf(codes.FailedPrecondition, "container %s runs", c.id)
	}
	if err := c.runtime.delete(c.bundle, c.id); err != nil && c.runtime.knows(c.id) {
		return err
	}
	if err := c.process.Signal(unix.SIGKILL); err != nil { // whatever the runtime knew of it
		return err
	}
	<-c.ended
	c.endOutputs()
	c.gone.Store(true)
	return c.process.Close()
}

// endOutputs waits until what was printed is written, for a while.
func (c *container) endOutputs() {
	patient, cancel := context.WithTimeout(context.Background(), outputTime)
	defer cancel()
	for _, o := range c.outputs {
		select {
		case <-o.ended:
		case <-patient.Done():
			_ = o.to.Close()
			_ = o.pipe.Close()
		}
	}
}

func (c *container) pid() uint32 {
	if c.is() == tasktypes.Status_UNKNOWN {
		return 0
	}
	return uint32(c.process.Identity().PID)
}
