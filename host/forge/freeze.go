package forge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// underWay is what changes workers at the moment, by the name that it has the turn
// of, until nothing may begin any more.
type underWay struct {
	mu     sync.Mutex
	names  map[string]bool
	frozen chan struct{} // closed when nothing may begin any more
	idle   chan struct{} // closed when, after that, nothing is under way
	over   chan struct{} // closed when, before that, nobody waits for it any more
}

func newUnderWay() *underWay {
	return &underWay{names: map[string]bool{}, frozen: make(chan struct{}), idle: make(chan struct{}), over: make(chan struct{})}
}

// begin says whether something may begin.
func (u *underWay) begin(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if isClosed(u.frozen) {
		return false
	}
	u.names[name] = true
	return true
}

func (u *underWay) end(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.names, name)
	if isClosed(u.frozen) && len(u.names) == 0 {
		close(u.idle)
	}
}

// freeze lets nothing begin any more. It changes nothing the second time.
func (u *underWay) freeze() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if isClosed(u.frozen) {
		return
	}
	close(u.frozen)
	if len(u.names) == 0 {
		close(u.idle)
	}
}

// giveUp says whose names are under way still: nobody waits for them any more.
func (u *underWay) giveUp() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !isClosed(u.over) {
		close(u.over)
	}
	return slices.Sorted(maps.Keys(u.names))
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Freeze lets nothing begin any more: whoever waits for a turn or a place is told
// so at once. Then it waits for what is under way, until ctx ends. What is under
// way even then is named in the error, and is cut short: no worker gets more of its
// grace, and what was being made is undone, here or by the next host. What was kept
// warm is removed, however soon ctx ends: it is nobody's, and ends at once.
func (f *Forge) Freeze(ctx context.Context) error {
	f.work.freeze()
	f.warming.freeze()
	return errors.Join(f.awaitWork(ctx), f.awaitCold())
}

// awaitCold waits until what was kept warm is removed.
func (f *Forge) awaitCold() error {
	select {
	case <-f.warming.idle:
		return nil
	case <-time.After(undoTimeout):
		return worker.Hint(fmt.Errorf("remove what was kept warm: not done within %s: %w", undoTimeout, worker.ErrUnavailable),
			"the next host on this data folder removes it")
	}
}

func (f *Forge) awaitWork(ctx context.Context) error {
	select {
	case <-f.work.idle:
		return nil
	case <-ctx.Done():
	}
	left := f.work.giveUp()
	if len(left) == 0 { // it ended just now
		return nil
	}
	told := strings.Join(left[:min(len(left), 10)], ", ")
	if len(left) > 10 {
		told += ", ..."
	}
	return worker.Hint(fmt.Errorf("wait for what is done to %d workers (%s): %w", len(left), told, ctx.Err()),
		"the next host on this data folder brings them to an end; look with dals-host workers then")
}

// errFrozen says that nothing may begin any more.
var errFrozen = worker.Hint(fmt.Errorf("the host is going down: %w", worker.ErrUnavailable), "try again on the next host")

// until is ctx, which ends also, because of errFrozen, when end is closed.
func until(ctx context.Context, end <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-end:
			cancel(errFrozen)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// because is err, and errFrozen where that has ended ctx.
func because(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errFrozen) {
		return fmt.Errorf("%w: %w", err, errFrozen)
	}
	return err
}

// take waits for the turn at a name. While the forge is frozen nobody gets one.
func (f *Forge) take(ctx context.Context, name string) (done func(), err error) {
	waiting, cancel := until(ctx, f.work.frozen)
	defer cancel()
	back, err := f.turns.Take(waiting, name)
	if err != nil {
		if errors.Is(context.Cause(waiting), errFrozen) {
			return nil, errFrozen
		}
		return nil, worker.Hint(fmt.Errorf("wait for another call about %s: %w", name, err), "try again when that has ended")
	}
	return f.begin(name, back)
}

// errBusy says that somebody else has the turn.
var errBusy = fmt.Errorf("another call about it is under way: %w", worker.ErrConflict)

// tryTake takes the turn at a name, or is errBusy.
func (f *Forge) tryTake(name string) (done func(), err error) {
	back, ok := f.turns.TryTake(name)
	if !ok {
		return nil, errBusy
	}
	return f.begin(name, back)
}

// begin begins what has the turn at a name.
func (f *Forge) begin(name string, back func()) (done func(), err error) {
	if !f.work.begin(name) {
		back()
		return nil, errFrozen
	}
	return func() { f.work.end(name); back() }, nil
}

// enter waits until few enough workers are in the making.
func (f *Forge) enter(ctx context.Context) (leave func(), err error) {
	if isClosed(f.work.frozen) {
		return nil, errFrozen
	}
	select {
	case f.slots <- struct{}{}:
		return func() { <-f.slots; f.warmth.wakeUp() }, nil
	case <-f.work.frozen:
		return nil, errFrozen
	case <-ctx.Done():
		return nil, worker.Hint(fmt.Errorf("wait for the forges before it: %w", ctx.Err()), "try again, or give it more time with --timeout")
	}
}

// ownEnd is the part of a worker's grace that begins with SIGTERM: a worker of the
// sdk then gives its tasks 4 s before it tells them to end, and takes 5 in all.
const ownEnd = 5 * time.Second

// stopWorker ends a worker's process: within its grace what it owes is waited for
// first, and only then it is told to end. Where the host that goes down waits no
// longer, the worker gets no more of its grace.
func (f *Forge) stopWorker(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	patient, cancel := until(ctx, f.work.over)
	defer cancel()
	began := time.Now()
	if grace > ownEnd {
		drain, drained := context.WithTimeout(patient, grace-ownEnd)
		f.Sessions.Drain(drain, serial)
		drained()
	}
	err := f.Launcher.Stop(patient, serial, max(0, grace-time.Since(began)))
	if err != nil && errors.Is(context.Cause(patient), errFrozen) {
		return f.Launcher.Stop(ctx, serial, 0)
	}
	return err
}
