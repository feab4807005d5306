package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// Config says where the registry is.
type Config struct {
	Path   string       // the SQLite file; its folder must exist
	Logger hclog.Logger // nil logs nothing
}

// Registry is an open registry. All methods may be called concurrently.
type Registry struct {
	committer *committer // nil where the registry was opened to read
	committed chan struct{}
	pool      *sql.DB // readers
	read      *sqlcgen.Queries
}

// Open opens the registry, makes it where there is none, and brings its schema
// up to date. It reads the whole file once to check it: a damaged one is
// worker.ErrCorrupt, with a hint.
func Open(ctx context.Context, c Config) (*Registry, error) {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	r, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open registry %s: %w", c.Path, err)
	}
	return r, nil
}

func open(ctx context.Context, c Config) (_ *Registry, err error) {
	if err := create(c.Path); err != nil {
		return nil, worker.Hint(err, "the host's user must own the data folder and be able to write to it")
	}
	db, err := database(c.Path, writing)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	if err := check(ctx, db); err != nil {
		return nil, err
	}
	if err := migrate(ctx, db); err != nil {
		return nil, err
	}
	r, err := openPool(ctx, c.Path)
	if err != nil {
		return nil, err
	}
	if r.committer, err = newCommitter(db, r.committed, c.Logger); err != nil {
		return nil, errors.Join(err, r.pool.Close())
	}
	return r, nil
}

// OpenReadOnly opens an existing registry to read, also while a host has it
// open. Update is worker.ErrUnavailable on it, and Committed never receives.
func OpenReadOnly(ctx context.Context, path string) (*Registry, error) {
	r, err := openReadOnly(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open registry %s: %w", path, err)
	}
	return r, nil
}

func openReadOnly(ctx context.Context, path string) (_ *Registry, err error) {
	r := &Registry{committed: make(chan struct{}, 1)}
	if r.pool, err = database(path, reading); err != nil {
		return nil, err
	}
	if err := errors.Join(check(ctx, r.pool), checkSchema(ctx, r.pool)); err != nil {
		return nil, errors.Join(err, r.pool.Close())
	}
	return r, r.prepare(ctx)
}

func openPool(ctx context.Context, path string) (_ *Registry, err error) {
	r := &Registry{committed: make(chan struct{}, 1)}
	if r.pool, err = database(path, reading); err != nil {
		return nil, err
	}
	return r, r.prepare(ctx)
}

// prepare makes the read statements, or closes the pool.
func (r *Registry) prepare(ctx context.Context) (err error) {
	if r.read, err = sqlcgen.Prepare(ctx, r.pool); err != nil {
		return errors.Join(fault(err), r.pool.Close())
	}
	return nil
}

// Close waits for the closures that Update has accepted and closes the file.
// Later Updates return ErrClosed. Closing twice does nothing.
func (r *Registry) Close() error {
	var err error
	if r.committer != nil {
		err = r.committer.close()
	}
	if err = errors.Join(err, r.pool.Close()); err != nil {
		return fmt.Errorf("close registry: %w", err)
	}
	return nil
}

// Committed receives after commits, coalesced: one value may stand for many. It
// is one channel for one receiver.
func (r *Registry) Committed() <-chan struct{} { return r.committed }

// SetMeta keeps a value under a key, in place of the one before.
func (tx *Tx) SetMeta(key, value string) error {
	return tx.do("set meta "+key, func() error {
		return tx.q.SetMeta(tx.ctx, sqlcgen.SetMetaParams{Key: key, Value: value})
	})
}

// Meta is the value kept under key, or worker.ErrNotFound.
func (r *Registry) Meta(ctx context.Context, key string) (string, error) {
	value, err := r.read.Meta(ctx, key)
	if err != nil {
		return "", fmt.Errorf("read meta %s: %w", key, fault(err))
	}
	return value, nil
}

// millis is t as it is stored; the zero time is 0.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// instant is the time that ms stands for.
func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// present makes an absent byte string an empty one: no column is NULL.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
