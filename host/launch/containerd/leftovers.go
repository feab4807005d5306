package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/worker"
)

// leftovers are the files by which containerd, the shim and the runtime know of the
// worker's task. They are there while it is being made and until its shim has
// gone. Where a host died while a task was being made, or a shim was killed,
// they can be there without a task, and then no other can be made.
func (l *Launcher) leftovers(serial worker.Serial) []string {
	var found []string
	for _, path := range []string{
		l.site.bundle(serial), // "" is never there
		filepath.Join(l.site.runcRoot(), l.site.namespace, string(serial)),
		shimSocket(l.site.address, l.site.namespace, string(serial)),
		shim.Member(l.site.stateDir(), string(serial)),
	} {
		if _, err := os.Lstat(path); err == nil {
			found = append(found, path)
		}
	}
	return found
}

// quiet is how long a bundle must have been gone before its name is used again:
// containerd clears a failed start away twice, and does not look whose files it
// deletes the second time.
const quiet = 200 * time.Millisecond

// awaitNoLeftovers gives whoever is at it a moment to finish, and says whether
// there is nothing left.
func (l *Launcher) awaitNoLeftovers(ctx context.Context, serial worker.Serial, patience time.Duration) (bool, error) {
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var busy time.Time // when the bundle was last seen
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		left := l.leftovers(serial)
		if slices.Contains(left, l.site.bundle(serial)) {
			busy = time.Now()
		}
		if len(left) == 0 && time.Since(busy) > quiet {
			return true, nil
		}
		select {
		case <-patient.Done():
			return false, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// scrub deletes what is left of a worker that has no task. It first proves that
// no process is left either.
func (l *Launcher) scrub(ctx context.Context, serial worker.Serial) error {
	if err := l.emptyCgroup(ctx, serial); err != nil {
		return err
	}
	gone, err := l.awaitNoLeftovers(ctx, serial, time.Second)
	if err != nil || gone {
		return err
	}
	if err := l.site.endShims(ctx, string(serial)); err != nil {
		return fmt.Errorf("end shim: %w", err)
	}
	if err := l.leaveGroup(ctx, serial); err != nil {
		return err
	}
	if err := l.emptyCgroup(ctx, serial); err != nil { // a shim may have been about to fork
		return err
	}
	for _, path := range l.leftovers(serial) {
		l.log.Debug("what an unfinished start has left is deleted", "serial", serial, "path", path)
		failpoint.Hit("containerd", "leftovers", "before")
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("delete leftovers: %w", err)
		}
		failpoint.Hit("containerd", "leftovers", "after")
	}
	return l.awaitNoShim(ctx, serial)
}

// leaveGroup has the shim of the worker's group, which may have been about to start
// it, be rid of it.
func (l *Launcher) leaveGroup(ctx context.Context, serial worker.Serial) error {
	state := l.site.stateDir()
	if state == "" { // another's containerd, which has shims of its own
		return nil
	}
	if err := shim.Remove(ctx, state, l.site.namespace, l.site.bundle(serial), string(serial)); err != nil {
		return fmt.Errorf("leave the shim's group: %w", err)
	}
	return nil
}

// awaitNoShim waits until containerd has cleared away after a shim that was
// killed: it runs the shim's binary for it, which deletes what the worker's next
// task would have under the same names.
func (l *Launcher) awaitNoShim(ctx context.Context, serial worker.Serial) error {
	for busy := time.Now(); time.Since(busy) <= quiet; {
		shims, err := l.site.shims(string(serial))
		if err != nil {
			return err
		}
		for _, one := range shims {
			busy = time.Now()
			_ = one.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await end of shim: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
