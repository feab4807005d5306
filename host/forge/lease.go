package forge

import (
	"context"
	"sync"
)

// leases are the binaries that jobs under way have looked up: what is under way
// needs them before, and beside, what any worker's row says.
type leases struct {
	mu   sync.Mutex
	held map[string]int // by digest: how many jobs
}

// lookup finds a type and holds its binary, and what is made from it, until
// release is called.
func (f *Forge) lookup(ctx context.Context, name, version string) (t Type, release func(), err error) {
	f.leases.mu.Lock()
	defer f.leases.mu.Unlock()
	if t, err = f.Types.Lookup(ctx, name, version); err != nil {
		return Type{}, nil, err
	}
	digest := t.Image.Digest
	if f.leases.held == nil {
		f.leases.held = map[string]int{}
	}
	f.leases.held[digest]++
	return t, sync.OnceFunc(func() {
		f.leases.mu.Lock()
		defer f.leases.mu.Unlock()
		if f.leases.held[digest]--; f.leases.held[digest] == 0 {
			delete(f.leases.held, digest)
		}
	}), nil
}

// Collect runs collect while no job takes up a binary. leased says of a binary
// whether a job under way needs it; what workers' rows name is the caller's to
// spare, and to read within collect: a job that has ended has written its row.
func (f *Forge) Collect(collect func(leased func(digest string) bool) error) error {
	f.leases.mu.Lock()
	defer f.leases.mu.Unlock()
	return collect(func(digest string) bool { return f.leases.held[digest] > 0 })
}
