package host

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// strayGrace is how long what the launcher has and the registry does not know, a
// worker or a container of somebody else's, is only told of. After it the collection of garbage may delete one that
// does not run; one that runs nothing but down ends.
const strayGrace = 24 * time.Hour

// strays are what the launcher has and the registry does not know. They are never
// taken for leftovers: somebody may have to look at them.
type strays struct {
	mu   sync.Mutex
	seen map[worker.Serial]stray
}

type stray struct {
	since   time.Time
	running bool
	told    bool
}

// lookForStrays compares what the launcher has with the registry. What is there
// only once may be on its way, and is not told of.
func (h *Host) lookForStrays(ctx context.Context) {
	created, err := h.listWithin(ctx, 10*time.Second) // first: whatever is created has its row before
	if err != nil {
		h.Logger.Warn("launched workers not compared with the registry", "error", err)
		return
	}
	workers, err := h.registry.Workers(ctx, registry.Filter{})
	if err != nil {
		h.Logger.Warn("launched workers not compared with the registry", "error", err)
		return
	}
	known := map[worker.Serial]bool{}
	for _, w := range workers {
		known[w.Serial] = true
	}
	h.strays.mu.Lock()
	defer h.strays.mu.Unlock()
	now := map[worker.Serial]stray{}
	for _, s := range created {
		if known[s.Serial] {
			continue
		}
		before, again := h.strays.seen[s.Serial]
		found := stray{since: time.Now(), running: s.Running, told: again}
		if again {
			found.since = before.since
		}
		if again && !before.told {
			h.Logger.Warn("the registry does not know this worker; left alone", "serial", s.Serial, "running", s.Running, "pid", s.PID)
		}
		now[s.Serial] = found
	}
	h.strays.seen = now
}

// idleStrays are the strays that do not run and were told of for strayGrace.
func (b backend) idleStrays(ctx context.Context) (found []waste, _ error) {
	b.lookForStrays(ctx)
	b.strays.mu.Lock()
	defer b.strays.mu.Unlock()
	for serial, s := range b.strays.seen {
		if s.running || !s.told || time.Since(s.since) < strayGrace {
			continue
		}
		found = append(found, waste{
			control.Garbage{Kind: "container", Name: string(serial), Reason: "the registry does not know it, and it does not run"},
			func() error { return b.removeIdle(ctx, serial) },
		})
	}
	return found, nil
}

// removeIdle removes a stray, which kills what runs in it: only that it did not run
// when it was found is too old a reason.
func (b backend) removeIdle(ctx context.Context, serial worker.Serial) error {
	created, err := b.launcher.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range created {
		if s.Serial == serial && s.Running {
			return fmt.Errorf("it has been started meanwhile, and is left alone: %w", worker.ErrConflict)
		}
	}
	return b.launcher.Remove(ctx, serial)
}

// degraded tells of the strays.
func (s *strays) degraded() (faults []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for serial, found := range s.seen {
		if found.told {
			faults = append(faults, fmt.Sprintf("the launcher has a worker %s (running: %t) that the registry does not know, since %s: left alone; dals-host down ends it",
				serial, found.running, found.since.UTC().Format(time.RFC3339)))
		}
	}
	return faults
}

// launcherFaults tells of a launcher that cannot be asked.
func (h *Host) launcherFaults(ctx context.Context) []string {
	if _, err := h.listWithin(ctx, 2*time.Second); err != nil {
		return []string{fmt.Sprintf("launcher: workers run on, and none can be started or stopped: %v", err)}
	}
	return nil
}

// listWithin asks the launcher, which may hang: what else there is to do shall be done.
func (h *Host) listWithin(ctx context.Context, patience time.Duration) ([]launch.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return h.launcher.List(ctx)
}
