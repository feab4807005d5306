package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// Tx is the registry inside an Update. It sees what earlier closures of its
// group wrote: those stand or fall with it. It is for the closure's goroutine
// and lifetime only. Its methods run under the committer's context (see the
// package's doc), so they take none.
type Tx struct {
	ctx   context.Context
	q     *sqlcgen.Queries
	conn  *sql.Conn
	batch *batch
	lost  error // why no statement may run any more
}

var errKept = errors.New("transaction is over: kept from an earlier update")

// do runs one operation and names it in its error.
func (tx *Tx) do(what string, operation func() error) error {
	if tx.lost != nil {
		return tx.lost
	}
	err := operation()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", what, fault(err))
	if !errors.Is(err, worker.ErrNotFound) && !tx.alive() {
		tx.lost = err
	}
	return err
}

// alive says whether the transaction still is. After some errors SQLite gives
// it up silently, and later statements would commit each for itself. Where it
// did, the BEGIN succeeds, and anything that still comes is rolled back with the
// group.
func (tx *Tx) alive() bool {
	_, err := tx.conn.ExecContext(tx.ctx, "BEGIN")
	return err != nil && strings.Contains(err.Error(), "within a transaction")
}

// now is the time of a change, as precise as it is stored.
func (tx *Tx) now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
