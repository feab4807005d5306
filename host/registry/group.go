package registry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/registry/sqlcgen"
)

// line is the writer's connection with its statements.
type line struct {
	conn    *sql.Conn
	queries *sqlcgen.Queries
	next    uint64 // the index of the next entry

	begin, savepoint, release, rollbackTo, rollback, commit *sql.Stmt
}

// commit runs one group and tells its callers.
func (c *committer) commit(ctx context.Context, group []*request) {
	own, err := c.transact(ctx, group)
	c.fault.Store(&err)
	if err != nil {
		c.disconnect(ctx)
	} else {
		if size := c.line.next; c.size.Swap(size) != size {
			signal(c.committed)
		}
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
	if err := execute(ctx, c.line.begin); err != nil {
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
	failpoint.Hit("registry", "commit", "before")
	if err := execute(ctx, c.line.commit); err != nil {
		return own, fmt.Errorf("commit transaction: %w", err)
	}
	failpoint.Hit("registry", "commit", "after")
	c.line.next = b.next()
	return own, nil
}

// try runs one closure in a savepoint. own is the closure's error, which undid
// the savepoint; err means that the transaction is lost.
func (c *committer) try(ctx context.Context, b *batch, closure func(*Tx) error) (own, err error) {
	if err := execute(ctx, c.line.savepoint); err != nil {
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
		if err := execute(ctx, c.line.rollbackTo); err != nil {
			return own, fmt.Errorf("roll back to savepoint: %w", err)
		}
	}
	if err := execute(ctx, c.line.release); err != nil {
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
		return errors.Join(fault(err), l.close())
	}
	c.line = l
	return nil
}

func (l *line) prepare(ctx context.Context) (err error) {
	for text, stmt := range map[string]**sql.Stmt{
		"BEGIN IMMEDIATE":     &l.begin,
		"SAVEPOINT closure":   &l.savepoint,
		"RELEASE closure":     &l.release,
		"ROLLBACK TO closure": &l.rollbackTo,
		"ROLLBACK":            &l.rollback,
		"COMMIT":              &l.commit,
	} {
		//nolint:sqlclosecheck // close closes it
		if *stmt, err = l.conn.PrepareContext(ctx, text); err != nil {
			return err
		}
	}
	if l.queries, err = sqlcgen.Prepare(ctx, l.conn); err != nil {
		return err
	}
	l.next, err = size(ctx, l.queries)
	return err
}

// close closes the statements, which nobody else would do for those of a single
// connection and which would keep the file open, and the connection itself.
func (l *line) close() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{l.begin, l.savepoint, l.release, l.rollbackTo, l.rollback, l.commit} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	if l.queries != nil {
		errs = append(errs, l.queries.Close())
	}
	if err := l.conn.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err, driver.ErrBadConn) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// disconnect drops the connection after a failed group: whatever state SQLite
// left it in, and whatever became of a failed commit, the next group starts
// from what is in the file.
func (c *committer) disconnect(ctx context.Context) {
	if c.line == nil {
		return
	}
	// The group's error is what counts; these most likely fail for its reason.
	_ = execute(ctx, c.line.rollback)
	_ = c.line.close()
	c.line = nil
}

func execute(ctx context.Context, stmt *sql.Stmt) error {
	_, err := stmt.ExecContext(ctx)
	return fault(err)
}
