package registry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
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
	stopped   chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	queue  []*request
	closed bool
	wake   chan struct{}

	line *line // the goroutine's alone; nil after a failure
}

// line is the writer's connection with its statements.
type line struct {
	conn                                                    *sql.Conn
	queries                                                 *sqlcgen.Queries
	begin, savepoint, release, rollbackTo, rollback, commit *sql.Stmt
	next                                                    uint64 // the index of the next entry
}

func newCommitter(db *sql.DB, committed chan<- struct{}, logger hclog.Logger) (*committer, error) {
	c := &committer{
		db: db, logger: logger, committed: committed,
		stopped: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	// Nothing may cancel a statement of the writer: a cancelled statement takes
	// the transaction of everybody in the group with it.
	ctx := context.Background()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	c.size.Store(c.line.next)
	go c.run(ctx)
	return c, nil
}

// Update runs closure in the registry's next transaction and returns once that
// is on disk. The closure's own error comes back as it is, a panic becomes an
// error; both undo what this closure did and nothing else. Any other error
// failed the whole group: nothing of it was written (after an I/O error while
// committing: most likely not).
//
// ctx bounds the waiting only. When it ends first, Update returns its error at
// once, and whether the closure ran is unknown.
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
		req.claimed.CompareAndSwap(false, true)
		return ctx.Err()
	case <-c.stopped:
	}
	select {
	case err := <-req.outcome:
		return err
	default:
		return ErrClosed
	}
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

// take claims the closures that wait. The second result is false once no more
// can come.
func (c *committer) take() ([]*request, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.queue), maxGroup)
	taken := make([]*request, 0, n)
	for _, req := range c.queue[:n] {
		if req.claimed.CompareAndSwap(false, true) {
			taken = append(taken, req)
		}
	}
	c.queue = append(c.queue[:0:0], c.queue[n:]...)
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

// commit runs one group and tells its callers.
func (c *committer) commit(ctx context.Context, group []*request) {
	own, err := c.transact(ctx, group)
	if err != nil {
		c.disconnect(ctx)
	} else {
		c.size.Store(c.line.next)
		signal(c.committed)
	}
	for i, req := range group {
		if own[i] == nil {
			own[i] = err
		}
		req.outcome <- own[i]
	}
}

// transact runs the closures in one transaction. It returns what each closure
// said for itself, and the error that failed them all.
func (c *committer) transact(ctx context.Context, group []*request) ([]error, error) {
	own := make([]error, len(group))
	if err := c.connect(ctx); err != nil {
		return own, fmt.Errorf("connect to registry: %w", err)
	}
	if err := exec(ctx, c.line.begin); err != nil {
		return own, fmt.Errorf("begin transaction: %w", err)
	}
	b := &batch{first: c.line.next}
	for i, req := range group {
		var err error
		if own[i], err = c.try(ctx, b, req.closure); err != nil {
			return own, err
		}
	}
	if err := b.store(ctx, c.line.queries); err != nil {
		return own, fmt.Errorf("store entries: %w", err)
	}
	if err := exec(ctx, c.line.commit); err != nil {
		return own, fmt.Errorf("commit transaction: %w", err)
	}
	c.line.next = b.next()
	return own, nil
}

// try runs one closure in a savepoint. own is the closure's error, which undid
// the savepoint; err means that the transaction is lost.
func (c *committer) try(ctx context.Context, b *batch, closure func(*Tx) error) (own, err error) {
	if err := exec(ctx, c.line.savepoint); err != nil {
		return nil, fmt.Errorf("set savepoint: %w", err)
	}
	before := *b
	tx := &Tx{ctx: ctx, q: c.line.queries, conn: c.line.conn, batch: b}
	own = c.guard(tx, closure)
	if tx.lost != nil {
		return own, fmt.Errorf("transaction was aborted: %w", tx.lost)
	}
	tx.lost = errKept
	if own != nil {
		*b = before
		if err := exec(ctx, c.line.rollbackTo); err != nil {
			return own, fmt.Errorf("roll back to savepoint: %w", err)
		}
	}
	if err := exec(ctx, c.line.release); err != nil {
		return own, fmt.Errorf("release savepoint: %w", err)
	}
	return own, nil
}

// guard makes a panic of the closure its error.
func (c *committer) guard(tx *Tx, closure func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.logger.Error("update panicked", "panic", p, "stack", hclog.Stacktrace())
			err = fmt.Errorf("update registry: panic: %v", p)
		}
	}()
	return closure(tx)
}

// connect makes the writer's connection, where there is none.
func (c *committer) connect(ctx context.Context) error {
	if c.line != nil {
		return nil
	}
	conn, err := c.db.Conn(ctx)
	if err != nil {
		return fault(err)
	}
	l := &line{conn: conn}
	if err := l.prepare(ctx); err != nil {
		return errors.Join(fault(err), conn.Close())
	}
	c.line = l
	return nil
}

func (l *line) prepare(ctx context.Context) (err error) {
	for _, s := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&l.begin, "BEGIN IMMEDIATE"}, {&l.commit, "COMMIT"}, {&l.rollback, "ROLLBACK"},
		{&l.savepoint, "SAVEPOINT closure"}, {&l.release, "RELEASE closure"}, {&l.rollbackTo, "ROLLBACK TO closure"},
	} {
		if *s.stmt, err = l.conn.PrepareContext(ctx, s.text); err != nil {
			return err
		}
	}
	if l.queries, err = sqlcgen.Prepare(ctx, l.conn); err != nil {
		return err
	}
	l.next, err = size(ctx, l.queries)
	return err
}

// disconnect drops the connection after a failed group: whatever state SQLite
// left it in, and whatever became of a failed commit, the next group starts
// from what is in the file.
func (c *committer) disconnect(ctx context.Context) {
	if c.line == nil {
		return
	}
	_ = exec(ctx, c.line.rollback) // closing would do it, but only after the checkpoint
	_ = c.line.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = c.line.conn.Close()
	c.line = nil
}

func (c *committer) close() error {
	c.mu.Lock()
	c.closed = true
	signal(c.wake)
	c.mu.Unlock()
	<-c.stopped
	if c.line != nil {
		_ = c.line.conn.Close() // closed before, or handed to the pool that closes it
	}
	return c.db.Close()
}

func exec(ctx context.Context, stmt *sql.Stmt) error {
	_, err := stmt.ExecContext(ctx)
	return fault(err)
}

// signal leaves a value in a channel of one, where there is none yet.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
