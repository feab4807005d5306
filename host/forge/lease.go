package forge

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/dals-host/dals-host/host/worker"
)

// leases are the binaries that jobs under way have looked up: what is under way
// needs them before, and beside, what any worker's row says.
type leases struct {
	looking chan struct{} // full while a job looks one up, or none may
	mu      sync.Mutex
	held    map[string]int // by digest: how many jobs
}

func newLeases() *leases {
	return &leases{looking: make(chan struct{}, 1), held: map[string]int{}}
}

// stop has no job take up a binary until resume is called.
func (l *leases) stop(ctx context.Context) (resume func(), err error) {
	select {
	case l.looking <- struct{}{}:
		return func() { <-l.looking }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *leases) take(digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[digest]++
}

func (l *leases) giveBack(digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[digest]--; l.held[digest] == 0 {
		delete(l.held, digest)
	}
}

// lookup finds a type and holds its binary, and what is made from it, until
// release is called.
func (f *Forge) lookup(ctx context.Context, name, version string) (t Type, release func(), err error) {
	resume, err := f.leases.stop(ctx)
	if err != nil {
		return Type{}, nil, worker.Hint(fmt.Errorf("wait for the collection of garbage: %w", err), "try again when dals-host gc has ended")
	}
	defer resume()
	if t, err = f.Types.Lookup(ctx, name, version); err != nil {
		return Type{}, nil, err
	}
	digest := t.Image.Digest
	f.leases.take(digest)
	return t, sync.OnceFunc(func() { f.leases.giveBack(digest) }), nil
}

// Leased says which binaries the jobs under way need, by digest. No job takes up
// another until resume is called. What workers' rows name is the caller's to spare,
// and to read after this: a job that had ended has written its row.
func (f *Forge) Leased(ctx context.Context) (leased map[string]int, resume func(), err error) {
	if resume, err = f.leases.stop(ctx); err != nil {
		return nil, nil, fmt.Errorf("wait for the jobs under way: %w", err)
	}
	f.leases.mu.Lock()
	defer f.leases.mu.Unlock()
	return maps.Clone(f.leases.held), resume, nil
}
