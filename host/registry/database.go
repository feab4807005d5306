package registry

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/dals-host/dals-host/host/worker"
)

//go:embed migrations/*.sql
var embedded embed.FS

// migrations are all schemas that there were, by number.
func migrations() (fs.FS, error) { return fs.Sub(embedded, "migrations") }

// access is what a pool of connections is for.
type access int

const (
	writing access = iota
	reading
	copying // reads this file and writes another
	undoing // writes nothing but what SQLite does on its own
)

// readers is how many reads run at a time; more wait their turn.
const readers = 4

// create makes the file, readable by its owner only (SQLite gives its side files
// the same mode), or says in one line why it cannot be written.
func create(path string) error {
	folder := filepath.Dir(path)
	if err := unix.Access(folder, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write to", Path: folder, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// connections is a pool of connections to an existing file. It never makes one:
// a registry that is gone must not come back empty.
func connections(path string, a access) (*sql.DB, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	q := url.Values{
		"_busy_timeout": {"5000"},
		"_foreign_keys": {"1"},
		"_defensive":    {"1"},
		"_dqs":          {"0"},
		"_error_rc":     {"1"},
		"_pragma":       {"temp_store(MEMORY)", "trusted_schema(0)"},
	}
	switch a {
	case writing:
		q.Set("mode", "rw")
		q.Set("_journal_mode", "WAL")
		q.Set("_synchronous", "FULL")
		q.Add("_pragma", "journal_size_limit(67108864)")
	case reading:
		q.Set("mode", "ro")
		q.Set("_query_only", "1")
	case copying:
		q.Set("mode", "ro")
	case undoing:
		q.Set("mode", "rw")
		q.Set("_query_only", "1")
	}
	connector, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: absolute, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(readers)
	if a == writing {
		db.SetMaxOpenConns(1)
	}
	return db, nil
}

// isHalfWritten says whether a reader found a transaction to undo, which takes
// somebody who may write. It is one of before the write-ahead log: of the change
// to it, where a host makes its registry or opens a copy of one.
func isHalfWritten(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code() == sqlite3.SQLITE_READONLY_ROLLBACK
}

// undoHalfWritten has SQLite undo what nobody will finish.
func undoHalfWritten(ctx context.Context, path string) error {
	db, err := connections(path, undoing)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "SELECT count(*) FROM sqlite_schema")
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("undo what was half written: %w", fault(err))
	}
	return nil
}

// check reads the whole file once.
func check(ctx context.Context, db *sql.DB) error {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return fault(err)
	}
	if verdict != "ok" {
		return corrupt(errors.New(verdict))
	}
	return nil
}

// migrate brings the schema up to date; it refuses one from a newer host.
func migrate(ctx context.Context, db *sql.DB, schemas fs.FS) error {
	p, err := provider(db, schemas)
	if err != nil {
		return err
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", fault(err))
	}
	if have > want {
		return schemaMismatch(have, want)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate schema: %w", fault(err))
	}
	return nil
}

// checkSchema says whether a registry that may not be migrated can be read.
func checkSchema(ctx context.Context, db *sql.DB) error {
	schemas, err := migrations()
	if err != nil {
		return err
	}
	p, err := provider(db, schemas)
	if err != nil {
		return err
	}
	sources := p.ListSources()
	want := sources[len(sources)-1].Version
	var have int64
	if err := db.QueryRowContext(ctx, "SELECT max(version_id) FROM goose_db_version").Scan(&have); err != nil {
		return fmt.Errorf("read schema version: %w", fault(err))
	}
	if have != want {
		return schemaMismatch(have, want)
	}
	return nil
}

func provider(db *sql.DB, schemas fs.FS) (*goose.Provider, error) {
	return goose.NewProvider(goose.DialectSQLite3, db, schemas, goose.WithDisableGlobalRegistry(true))
}

func schemaMismatch(have, want int64) error {
	return worker.Hint(fmt.Errorf("schema is of version %d, this dals-host knows %d: %w", have, want, worker.ErrConflict),
		"use the dals-host that last served this data folder, or a newer one")
}
