package registry

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// maxGroup is how many closures share a transaction at most, so that the first
// of them does not wait for all the world.
const maxGroup = 512

// request is one closure on its way to the committer and back.
type request struct {
	closure func(*Tx) error
	claimed atomic.Bool // by the committer, or by a caller who left before it
	outcome chan error  // takes one without blocking
}

// committer is the one writer.
type committer struct {
	db        *sql.DB // of one connection
	logger    hclog.Logger
	committed chan<- struct{}
	size      atomic.Uint64 // committed entries
	fault     atomic.Pointer[error]
	stopped   chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	queue  []*request
	closed bool
	wake   chan struct{}

	line *line // the goroutine's alone; nil after a failure
}

// newCommitter opens the file to write, checks and migrates it, and starts the
// goroutine.
func newCommitter(ctx context.Context, config Config, committed chan<- struct{}) (*committer, error) {
	db, err := connections(config.Path, writing)
	if err != nil {
		return nil, err
	}
	c := &committer{
		db: db, logger: config.Logger, committed: committed,
		stopped: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return c, nil
}

func (c *committer) start(ctx context.Context) error {
	if err := check(ctx, c.db); err != nil {
		return err
	}
	schemas, err := migrations()
	if err != nil {
		return err
	}
	if err := migrate(ctx, c.db, schemas); err != nil {
		return err
	}
	// Nothing may cancel a statement of the writer: a cancelled statement takes
	// the transaction of everybody in the group with it.
	ctx = context.WithoutCancel(ctx)
	if err := c.connect(ctx); err != nil {
		return err
	}
	c.size.Store(c.line.next)
	go c.run(ctx)
	return nil
}

// stop lets the closures that were accepted run, takes no more, and waits for
// the goroutine.
func (c *committer) stop() {
	c.mu.Lock()
	c.closed = true
	signal(c.wake)
	c.mu.Unlock()
	<-c.stopped
}

// close closes the file, after stop.
func (c *committer) close() error {
	var err error
	if c.line != nil {
		err = c.line.close()
	}
	return errors.Join(err, c.db.Close())
}

// Update runs closure in the registry's next transaction and returns once that
// is on disk. The closure's own error comes back as it is, a panic becomes an
// error; both undo what this closure did and nothing else. Any other error
// failed the whole group: nothing of it was written (after an I/O error while
// committing: most likely not).
//
// ctx bounds the waiting for a turn. When it ends first, the closure never runs and
// Update returns ctx's error. A closure that runs is waited for, so that what it
// did is known, and nobody else writes what it has captured.
//
// The closure runs on the committer's goroutine while all other writers wait:
// it must be short, and must not call Update, keep tx, or end the goroutine.
func (r *Registry) Update(ctx context.Context, closure func(*Tx) error) error {
	c := r.committer
	if c == nil {
		return errReadOnly
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	req := &request{closure: closure, outcome: make(chan error, 1)}
	if !c.enqueue(req) {
		return ErrClosed
	}
	select {
	case err := <-req.outcome:
		return err
	case <-ctx.Done():
		if req.claimed.CompareAndSwap(false, true) {
			return ctx.Err()
		}
	case <-c.stopped:
	}
	select {
	case err := <-req.outcome:
		return err
	case <-c.stopped:
	}
	select {
	case err := <-req.outcome:
		return err
	default:
		return ErrClosed
	}
}

// Fault is what failed the last transaction as a whole; nil when it is on disk.
func (r *Registry) Fault() error {
	if r.committer == nil {
		return nil
	}
	if err := r.committer.fault.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *committer) enqueue(req *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.queue = append(c.queue, req)
	signal(c.wake)
	return true
}

// take claims the closures that wait, none only when the queue is empty. The
// second result is false once no more can come.
func (c *committer) take() ([]*request, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var taken []*request
	for len(c.queue) > 0 && len(taken) < maxGroup {
		if req := c.queue[0]; req.claimed.CompareAndSwap(false, true) {
			taken = append(taken, req)
		}
		c.queue[0] = nil
		c.queue = c.queue[1:]
	}
	return taken, !c.closed || len(c.queue) > 0
}

func (c *committer) run(ctx context.Context) {
	defer close(c.stopped)
	for more := true; more; {
		var group []*request
		if group, more = c.take(); len(group) > 0 {
			c.commit(ctx, group)
		} else if more {
			<-c.wake
		}
	}
}

// signal leaves a value in a channel of one, where there is none yet.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
