package forge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/worker"
)

// A slot is a worker that may come to be: it has a serial and a uid, a folder with
// its keys in it, and a container that was created and not started. No row tells of
// it. A forge that claims it goes through the same steps as any other, and finds
// part of them done; what a host that dies leaves of its slots the next removes:
// the launcher the containers, the stage the folders, Recover the uids.
type slot struct {
	worker  worker.Worker // as far as it is known
	folder  *stage.Stage
	release func() // gives back the lease of the binary
}

// warmth is the slots that nobody has claimed.
type warmth struct {
	mu    sync.Mutex
	slots []*slot
	left  []*slot       // could not be removed, and are claimed by nobody
	wake  chan struct{} // holds one word when there may be something to do
}

func newWarmth() *warmth { return &warmth{wake: make(chan struct{}, 1)} }

func (h *warmth) wakeUp() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *warmth) put(s *slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots = append(h.slots, s)
}

// take takes the first slot that fits out of the others; nil where there is none.
func (h *warmth) take(fits func(*slot) bool) *slot {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.slots, fits)
	if i < 0 {
		return nil
	}
	s := h.slots[i]
	h.slots = slices.Delete(h.slots, i, i+1)
	return s
}

// find finds the first slot that fits.
func (h *warmth) find(fits func(*slot) bool) (*slot, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.slots, fits)
	if i < 0 {
		return nil, false
	}
	return h.slots[i], true
}

func (h *warmth) count(fits func(*slot) bool) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.slots {
		if fits(s) {
			n++
		}
	}
	return n
}

// fitsJob says whether a slot is what a job would make. One with grants has more in
// its folder, and more of a container; one with limits of its own has other ones.
func (j *job) fits(s *slot) bool {
	return len(j.worker.Grants) == 0 && j.worker.Limits == (worker.Limits{}) && !j.request.NoStart &&
		s.worker.PluginDigest == j.worker.PluginDigest && s.worker.Type == j.worker.Type &&
		s.worker.TypeVersion == j.worker.TypeVersion && s.worker.Model == j.worker.Model
}

// What KeepWarm waits between two looks: it is told of forges, not of types.
const (
	warmSoon  = time.Second
	warmEvery = 30 * time.Second // where the last one failed, at the most
)

// KeepWarm keeps as many slots of the default version of each type as Config.Warm
// says, until ctx ends or the forge is frozen; then it removes them. It makes them
// while no forge is under way.
func (f *Forge) KeepWarm(ctx context.Context) error {
	if len(f.Warm) == 0 || !f.warming.begin("") {
		return nil
	}
	defer f.warming.end("")
	ctx, cancel := until(ctx, f.warming.frozen)
	defer cancel()
	defer f.coolAll(context.WithoutCancel(ctx))
	for pause := warmSoon; ; {
		pause = min(2*pause, warmEvery)
		if err := f.refill(ctx); err == nil {
			pause = warmSoon
		} else if ctx.Err() == nil {
			f.Logger.Warn("workers not kept warm as asked for", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.warmth.wake:
		case <-time.After(pause):
		}
	}
}

// refill removes the slots that no request would claim any more, and what is left of
// others, and makes those that are missing.
func (f *Forge) refill(ctx context.Context) error {
	err := f.discardLeft(ctx)
	for _, name := range slices.Sorted(maps.Keys(f.Warm)) {
		if err == nil {
			err = f.refillType(ctx, name)
		}
	}
	return err
}

func (f *Forge) refillType(ctx context.Context, name string) error {
	typ, release, err := f.lookup(ctx, name, "")
	known := err == nil // else there is no such type yet, or any more
	if known {
		defer release()
	} else if !errors.Is(err, worker.ErrNotFound) {
		return err
	}
	isOf := func(s *slot) bool { return s.worker.Type == name }
	isDefault := func(s *slot) bool { return isOf(s) && s.worker.PluginDigest == typ.Image.Digest }
	if err := f.cool(ctx, func(s *slot) bool { return isOf(s) && !isDefault(s) }); err != nil {
		return err
	}
	for known && len(f.slots) == 0 && ctx.Err() == nil && f.warmth.count(isDefault) < f.Warm[name] {
		if err := f.heat(ctx, typ); err != nil {
			return err
		}
	}
	return nil
}

// heat makes one slot of a type.
func (f *Forge) heat(ctx context.Context, t Type) error {
	d := t.Descriptor
	f.leases.take(t.Image.Digest) // the caller has it looked up
	s := &slot{
		worker:  worker.Worker{Type: d.GetName(), TypeVersion: d.GetVersion(), PluginDigest: t.Image.Digest, Model: modelOf(d)},
		release: sync.OnceFunc(func() { f.leases.giveBack(t.Image.Digest) }),
	}
	err := f.Registry.Update(context.WithoutCancel(ctx), func(tx *registry.Tx) error {
		if err := f.allocateSelf(tx, &s.worker); err != nil {
			return err
		}
		return tx.HoldUID(s.worker.UID)
	})
	if err != nil {
		s.release()
		return err
	}
	if err := f.warmUp(ctx, s, t); err != nil {
		return errors.Join(err, f.discard(context.WithoutCancel(ctx), s))
	}
	f.Logger.Debug("a worker is kept warm", "type", s.worker.Type, "version", s.worker.TypeVersion, "serial", s.worker.Serial)
	f.warmth.put(s)
	return nil
}

func (f *Forge) warmUp(ctx context.Context, s *slot, t Type) (err error) {
	if s.folder, err = f.Stage.NewWarm(s.worker.Serial); err != nil {
		return err
	}
	if err := lay(s.folder, folders(s.worker)); err != nil {
		return err
	}
	if err := f.layKeys(s.folder, &s.worker, time.Now()); err != nil {
		return err
	}
	if _, err := f.Launcher.Prepare(ctx, t.Image); err != nil {
		return err
	}
	spec := f.Spec(s.worker)
	spec.Dir = s.folder.Dir()
	return f.Launcher.Warm(ctx, spec)
}

// cool removes slots.
func (f *Forge) cool(ctx context.Context, which func(*slot) bool) (err error) {
	for s := f.warmth.take(which); s != nil; s = f.warmth.take(which) {
		err = errors.Join(err, f.discard(ctx, s))
	}
	return err
}

// coolAll removes all slots; what cannot be removed the next host removes.
func (f *Forge) coolAll(ctx context.Context) {
	err := f.cool(ctx, func(*slot) bool { return true })
	if err := errors.Join(err, f.discardLeft(ctx)); err != nil {
		f.Logger.Warn("not all that was kept warm is removed; the next host does it", "error", err)
	}
}

// discard removes one slot that nobody else has: its container, its folder, and
// then its uid is free. Where that fails it is tried again.
func (f *Forge) discard(ctx context.Context, s *slot) error {
	s.release()
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	if s.folder != nil {
		_ = s.folder.Close() // it is read no more
	}
	err := f.Launcher.Remove(ctx, s.worker.Serial)
	if err == nil {
		err = f.Stage.Drop(s.worker.Serial)
	}
	if err == nil {
		err = f.Registry.Update(ctx, func(tx *registry.Tx) error { return tx.FreeHeldUID(s.worker.UID) })
	}
	if err != nil {
		f.warmth.mu.Lock()
		defer f.warmth.mu.Unlock()
		f.warmth.left = append(f.warmth.left, s)
		return fmt.Errorf("remove %s, which was kept warm: %w", s.worker.Serial, err)
	}
	return nil
}

// discardLeft removes what could not be removed before.
func (f *Forge) discardLeft(ctx context.Context) (err error) {
	f.warmth.mu.Lock()
	left := f.warmth.left
	f.warmth.left = nil
	f.warmth.mu.Unlock()
	for _, s := range left {
		err = errors.Join(err, f.discard(ctx, s))
	}
	return err
}

// freeHeldUIDs frees the uids of an earlier host's slots, of which nothing else is
// left where a launcher was opened.
func (f *Forge) freeHeldUIDs(ctx context.Context) error {
	held, err := f.Registry.HeldUIDs(ctx)
	if err != nil || len(held) == 0 {
		return err
	}
	return f.Registry.Update(ctx, func(tx *registry.Tx) error {
		for _, uid := range held {
			if err := tx.FreeHeldUID(uid); err != nil {
				return err
			}
		}
		return nil
	})
}
