package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dals-host/dals-host/host/care"
	"github.com/dals-host/dals-host/host/catalog"
	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
)

const (
	// deadFor is how long after its retirement what is left of a worker is kept.
	deadFor = 24 * time.Hour
	// asideFor is how long what a recovery put aside is kept, for a person to look
	// at and to save.
	asideFor = 30 * 24 * time.Hour
	// garbageLimit bounds one collection: the catalog and the forge wait for it.
	garbageLimit = 30 * time.Second
)

// waste is something that nothing needs, and how to delete it.
type waste struct {
	control.Garbage
	delete func() error
}

// CollectGarbage finds what nothing needs and, but for a dry run, deletes it. Both
// find in the same way. It goes beside everything else that the host does.
func (b backend) CollectGarbage(ctx context.Context, dryRun bool) ([]control.Garbage, error) {
	select {
	case b.collecting <- struct{}{}:
		defer func() { <-b.collecting }()
	case <-ctx.Done():
		return nil, worker.Hint(fmt.Errorf("wait for another collection of garbage: %w", ctx.Err()), "try again when that has ended")
	}
	ctx, cancel := context.WithTimeout(ctx, garbageLimit)
	defer cancel()
	found, err := b.collectBinaries(ctx, dryRun)
	errs := []error{err}
	for _, find := range []func(context.Context) ([]waste, error){b.idleStages, b.leftOfTheDead, b.longAside, b.idleStrays} {
		all, err := find(ctx)
		gone, kept := b.dispose(all, dryRun)
		found, errs = append(found, gone...), append(errs, err, kept)
	}
	slices.SortStableFunc(found, func(x, y control.Garbage) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name))
	})
	return found, errors.Join(errs...)
}

// dispose deletes waste, but for a dry run, and says what of it is gone.
func (b backend) dispose(all []waste, dryRun bool) ([]control.Garbage, error) {
	gone, errs := []control.Garbage{}, []error(nil)
	for _, w := range all {
		if !dryRun {
			if err := w.delete(); err != nil {
				errs = append(errs, fmt.Errorf("delete %s %s: %w", w.Kind, w.Name, err))
				continue
			}
			b.Logger.Info("garbage deleted", "kind", w.Kind, "name", w.Name, "bytes", w.Bytes, "reason", w.Reason)
		}
		gone = append(gone, w.Garbage)
	}
	return gone, errors.Join(errs...)
}

// collectBinaries takes the binaries that no worker type, worker or job needs, and
// what was made of them. Meanwhile no plugin is registered, and no job takes up a
// binary.
func (b backend) collectBinaries(ctx context.Context, dryRun bool) (gone []control.Garbage, err error) {
	collected := b.catalog.Collect(ctx, func(unneeded []catalog.Stored) []string {
		var drop []string
		gone, drop, err = b.dropBinaries(ctx, unneeded, dryRun)
		return drop
	})
	return gone, errors.Join(err, collected)
}

// dropBinaries deletes, but for a dry run, what was made of the binaries that
// nobody needs, and says which of the unneeded ones are to be deleted with it.
func (b backend) dropBinaries(ctx context.Context, unneeded []catalog.Stored, dryRun bool) (gone []control.Garbage, drop []string, err error) {
	leased, resume, err := b.forge.Leased(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer resume()
	needed, err := b.neededBinaries(ctx)
	if err != nil {
		return nil, nil, err
	}
	made, err := b.launcher.Artifacts(ctx)
	if err != nil {
		return nil, nil, err
	}
	free := func(digest string) bool { return !needed[digest] && leased[digest] == 0 }
	for _, a := range made { // who uses one that the registry does not know is left alone
		needed[a.Digest] = needed[a.Digest] || a.InUse
	}
	var all []waste
	for _, a := range made {
		if free(a.Digest) {
			all = append(all, waste{
				control.Garbage{Kind: a.Kind, Name: a.Name, Bytes: a.Bytes, Reason: "no worker type and no worker uses its binary"},
				func() error { return b.launcher.Discard(ctx, a.Digest) },
			})
		}
	}
	for _, s := range unneeded {
		if free(s.Digest) {
			all = append(all, waste{
				control.Garbage{Kind: "binary", Name: s.Digest, Bytes: s.Bytes, Reason: whyUnneeded(s)},
				func() error { drop = append(drop, s.Digest); return nil },
			})
		}
	}
	gone, err = b.dispose(all, dryRun)
	return gone, drop, err
}

func whyUnneeded(s catalog.Stored) string {
	if s.State == catalog.Quarantined {
		return "its plugin is quarantined, and no worker uses it"
	}
	return "no worker type and no worker uses it"
}

// neededBinaries are those of the registered types and of all workers that are not
// retired, whatever their state.
func (b backend) neededBinaries(ctx context.Context) (map[string]bool, error) {
	workers, err := b.registry.Workers(ctx, registry.Filter{})
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, w := range workers {
		needed[w.PluginDigest] = true
	}
	for _, t := range b.catalog.Types() {
		needed[t.Digest] = true
	}
	return needed, nil
}

// idleStages are the stages of no worker that is being made or changed. They are
// listed before the registry is read: the row of a worker is there before its
// stage, and goes after it.
func (b backend) idleStages(ctx context.Context) ([]waste, error) {
	staged, err := b.stage.Stages()
	if err != nil {
		return nil, err
	}
	var idle []waste
	for _, s := range staged {
		w, err := b.registry.Worker(ctx, s.Serial)
		if err != nil && !errors.Is(err, worker.ErrNotFound) {
			return nil, err
		}
		// The mirror of a worker passes through here, of a retired one too.
		isFolder := s.Name == string(s.Serial)
		if err == nil && (w.State != worker.StateRetired || !isFolder) {
			continue
		}
		idle = append(idle, waste{
			control.Garbage{Kind: "stage", Name: s.Name, Bytes: s.Bytes, Reason: "no forge makes this worker"},
			func() error { return b.stage.RemoveStage(s.Name) },
		})
	}
	return idle, nil
}

// leftOfTheDead is what lies among the workers' folders of those that retired
// more than a day ago.
func (b backend) leftOfTheDead(ctx context.Context) ([]waste, error) {
	mirrors, err := b.stage.Mirrors()
	if err != nil {
		return nil, err
	}
	folders, err := b.stage.Folders()
	if err != nil {
		return nil, err
	}
	var left []waste
	add := func(l stage.Leftover, remove func(worker.Serial) error) error {
		w, err := b.registry.Worker(ctx, l.Serial)
		if errors.Is(err, worker.ErrNotFound) {
			return nil // somebody may have to look at it
		}
		if err != nil {
			return err
		}
		if w.State == worker.StateRetired && time.Since(w.RetiredAt) > deadFor {
			left = append(left, waste{
				control.Garbage{Kind: "log", Name: l.Name, Bytes: l.Bytes, Reason: fmt.Sprintf("worker %s retired at %s", w.Name, w.RetiredAt.Format(time.RFC3339))},
				func() error { return remove(l.Serial) },
			})
		}
		return nil
	}
	for _, l := range mirrors {
		if err := add(l, b.stage.RemoveMirror); err != nil {
			return nil, err
		}
	}
	for _, l := range folders {
		if err := add(l, b.stage.Remove); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// longAside is what recoveries put aside long ago of a damaged registry or record.
func (b backend) longAside(context.Context) ([]waste, error) {
	asides, err := care.Asides(b.paths.registry, b.paths.record)
	if err != nil {
		return nil, err
	}
	var old []waste
	for _, a := range asides {
		if time.Since(a.At) > asideFor {
			old = append(old, waste{
				control.Garbage{Kind: "aside", Name: filepath.Base(a.Path), Bytes: a.Bytes, Reason: "a recovery put it aside at " + a.At.Format(time.RFC3339)},
				func() error { return os.RemoveAll(a.Path) },
			})
		}
	}
	return old, nil
}
