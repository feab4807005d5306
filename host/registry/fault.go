package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"regexp"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/dals-host/dals-host/host/worker"
)

// ErrClosed is what Update returns after Close.
var ErrClosed = fmt.Errorf("registry is closed: %w", worker.ErrUnavailable)

var errReadOnly = fmt.Errorf("registry is open to read only: %w", worker.ErrUnavailable)

// uniqueColumn finds the (first) column in SQLite's words on a violation.
var uniqueColumn = regexp.MustCompile(`UNIQUE constraint failed: [a-z_]+\.([a-z_]+)`)

// fault puts an error of the database into its family.
func fault(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return worker.ErrNotFound
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	const primary = 0xff // the low byte of an extended code is its primary code
	switch e.Code() & primary {
	case sqlite3.SQLITE_CONSTRAINT:
		if m := uniqueColumn.FindStringSubmatch(e.Error()); m != nil {
			return fmt.Errorf("%s is taken: %w", m[1], worker.ErrConflict)
		}
		return fmt.Errorf("%w: %w", worker.ErrInvalid, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return corrupt(err)
	case sqlite3.SQLITE_FULL:
		return worker.Hint(fmt.Errorf("%w: %w", worker.ErrUnavailable, err),
			"free some space where the data folder is; the host goes on by itself")
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return worker.Hint(fmt.Errorf("%w: %w", worker.ErrUnavailable, err),
			"the data folder's disk fails or cannot be written: see dmesg, and dals-host doctor; the host goes on by itself")
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM:
		return fmt.Errorf("%w: %w", worker.ErrUnavailable, err)
	}
	return err
}

func corrupt(err error) error {
	return worker.Hint(fmt.Errorf("%w: %w", worker.ErrCorrupt, err),
		"run dals-host recover: it makes the registry anew from the record")
}
