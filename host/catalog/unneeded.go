package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

// Stored is a binary in the store that no plugin needs: no file in a plugins
// folder stands for a type by it, or is on its way to.
type Stored struct {
	Digest string
	Bytes  int64
	State  State // of the plugin file with these bytes, if there is one
}

// collection is a call of Collect on its way to Run's goroutine.
type collection struct {
	choose func([]Stored) []string
	taken  *atomic.Bool // by who was first: Run's goroutine to begin it, or its caller to withdraw it
	done   chan error
}

// Collect deletes from the store those of the binaries that no plugin needs which
// choose picks, by digest. While choose runs nothing is verified, probed or
// registered, so it may decide by what else it knows; it must be quick, and must
// not call Collect. Run must be running. When ctx ends before choose has begun,
// it never runs; once it has, Collect returns after it. A file that comes back
// with bytes that were deleted is stored again, without another probe.
func (c *Catalog) Collect(ctx context.Context, choose func(unneeded []Stored) []string) error {
	request := collection{choose, new(atomic.Bool), make(chan error, 1)}
	select {
	case c.collections <- request:
	case <-ctx.Done():
		return fmt.Errorf("wait for the catalog: %w", ctx.Err())
	}
	select {
	case err := <-request.done:
		return err
	case <-ctx.Done():
		if request.taken.CompareAndSwap(false, true) {
			return fmt.Errorf("wait for the catalog: %w", ctx.Err())
		}
		return <-request.done
	}
}

// collect answers the calls of Collect, once no job is under way: a job may have
// stored what it has not told of yet. None begins meanwhile.
func (k *keeper) collect() {
	if k.working > 0 {
		return
	}
	for _, request := range k.collecting {
		if !request.taken.CompareAndSwap(false, true) {
			continue // withdrawn
		}
		request.done <- k.collectFor(request)
		k.hurried = true // whatever had to wait
	}
	k.collecting = nil
}

func (k *keeper) collectFor(request collection) error {
	unneeded, err := k.unneeded()
	if err != nil {
		return fmt.Errorf("list plugin store: %w", err)
	}
	var errs []error
	for _, digest := range request.choose(unneeded) {
		if !slices.ContainsFunc(unneeded, func(s Stored) bool { return s.Digest == digest }) {
			continue
		}
		if err := os.Remove(k.store.path(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("delete stored plugin: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (k *keeper) unneeded() ([]Stored, error) {
	names, err := os.ReadDir(k.store.dir)
	if err != nil {
		return nil, err
	}
	needed, states := map[string]bool{}, map[string]State{}
	for _, f := range k.files {
		if f.claim != nil {
			needed[f.claim.Digest] = true
		}
		if f.State == Verified || f.State == Probed {
			needed[f.Digest] = true
		}
		states[f.Digest] = f.State
	}
	for _, p := range k.leaving { // what drains has workers
		needed[p.Digest] = true
	}
	var list []Stored
	for _, e := range names {
		info, err := e.Info()
		if err != nil || needed[e.Name()] || strings.HasPrefix(e.Name(), incoming) {
			continue
		}
		list = append(list, Stored{Digest: e.Name(), Bytes: info.Size(), State: states[e.Name()]})
	}
	return list, nil
}
