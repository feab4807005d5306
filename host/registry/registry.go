package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/internal/failpoint"
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
	path      string
	committer *committer // nil where the registry was opened to read
	committed chan struct{}
	pool      *sql.DB // of readers
	read      *sqlcgen.Queries
	closing   sync.Once
}

// Open opens the registry, makes it where there is none, and brings its schema
// up to date. It reads the whole file once to check it: a damaged one is
// worker.ErrCorrupt, with a hint.
func Open(ctx context.Context, c Config) (*Registry, error) {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	r := &Registry{path: c.Path, committed: make(chan struct{}, 1)}
	if err := r.open(ctx, c); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return r, nil
}

func (r *Registry) open(ctx context.Context, c Config) (err error) {
	failpoint.Hit("registry", "open", "before")
	if err := create(c.Path); err != nil {
		return worker.Hint(err, "the host's user must own the data folder and be able to write to it")
	}
	if r.committer, err = newCommitter(ctx, c, r.committed); err != nil {
		return err
	}
	failpoint.Hit("registry", "open", "after")
	if err := r.openPool(ctx, c.Path); err != nil {
		r.committer.stop()
		return errors.Join(err, r.committer.close())
	}
	if err := r.Update(ctx, (*Tx).ensureShard); err != nil {
		return errors.Join(err, r.Close())
	}
	return nil
}

// OpenReadOnly opens an existing registry to read, also while a host has it
// open. It checks the file as Open does, and like that undoes a transaction that
// a host was killed in. Update is worker.ErrUnavailable on it,
// and Committed never receives.
func OpenReadOnly(ctx context.Context, path string) (*Registry, error) {
	r := &Registry{path: path, committed: make(chan struct{}, 1)}
	_, err := os.Stat(path)
	if err == nil {
		err = r.openPool(ctx, path, check, checkSchema)
	}
	if isHalfWritten(err) {
		if err = undoHalfWritten(ctx, path); err == nil {
			err = r.openPool(ctx, path, check, checkSchema)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return r, nil
}

// openPool makes the readers' connections and, once all checks passed, their
// statements.
func (r *Registry) openPool(ctx context.Context, path string, checks ...func(context.Context, *sql.DB) error) (err error) {
	if r.pool, err = connections(path, reading); err != nil {
		return err
	}
	for _, check := range checks {
		if err := check(ctx, r.pool); err != nil {
			return errors.Join(err, r.pool.Close())
		}
	}
	if r.read, err = sqlcgen.Prepare(ctx, r.pool); err != nil {
		return errors.Join(fault(err), r.pool.Close())
	}
	return nil
}

// Close waits for the closures that Update has accepted and closes the file.
// Later Updates return ErrClosed. Closing twice does nothing.
func (r *Registry) Close() error {
	var errs []error
	r.closing.Do(func() {
		failpoint.Hit("registry", "close", "before")
		if r.committer != nil {
			r.committer.stop()
		}
		errs = append(errs, r.read.Close(), r.pool.Close())
		if r.committer != nil {
			// The last connection to close takes the write-ahead log into the file
			// and away; readers may not, so it must be the writer's.
			errs = append(errs, r.committer.close())
		}
		failpoint.Hit("registry", "close", "after")
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close registry: %w", err)
	}
	return nil
}

// Committed receives after commits that appended entries, coalesced: one value
// may stand for many. It is one channel, for one receiver.
func (r *Registry) Committed() <-chan struct{} { return r.committed }

// SetMeta keeps a value under a key, in place of the one before.
func (tx *Tx) SetMeta(key, value string) error {
	return tx.do("set meta "+key, func() error {
		return tx.q.SetMeta(tx.ctx, sqlcgen.SetMetaParams{Key: key, Value: value})
	})
}

// DeleteMeta forgets a key; one that is not there is forgotten already.
func (tx *Tx) DeleteMeta(key string) error {
	return tx.do("delete meta "+key, func() error { return tx.q.DeleteMeta(tx.ctx, key) })
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
