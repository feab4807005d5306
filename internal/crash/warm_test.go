package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/dals-host/dals-host/host/registry"
)

// claiming is a forge that claims a container that was made beforehand, and what
// makes the next one.
var claiming = operation{
	name: "forge that claims", first: "control/Forge/before", runner: "forge",
	ready: func(m *matrix) error { return errors.Join(m.retire("nora"), m.full()) },
	run: func(m *matrix) error {
		err := m.forge("1.0.0")
		if err == nil && !strings.Contains(m.log.String(), "is claimed") {
			err = errors.New("the forge has claimed nothing")
		}
		return err
	},
}

// claim is the part of it that its caller waits for.
var claim = func() operation {
	op := claiming
	op.upto = "forge/record/after"
	return op
}()

// claimed is a start that dies over what is left of a claim, or of what it makes
// beforehand itself.
var claimed = recovery{"start after a claim", claiming.name, "stage/join/after"}

// newWarmMatrix is a host of one version, which it keeps warm.
func newWarmMatrix(t *testing.T, table *table) *matrix {
	t.Helper()
	m := &matrix{host: newHost(t, "containerd"), table: table, before: &lockedBuffer{}, calls: map[string]int64{}}
	m.warm = 1
	m.install(map[string]string{"1.0.0": "well"})
	m.boot(nil)
	m.registered(1)
	return m
}

// full waits until the host of the moment keeps as many warm as it is to.
func (m *matrix) full() error {
	return within(patience, func() error {
		log := m.log.String()
		if n := strings.Count(log, "a worker is kept warm") - strings.Count(log, "is claimed"); n != m.warm {
			return fmt.Errorf("%d workers are kept warm", n)
		}
		return nil
	})
}

// keptWarm are the serials of the containers that are nobody's yet, as many as
// there are to be, and of nothing else is there any trace.
func (m *matrix) keptWarm(ctx context.Context) (map[string]bool, error) {
	kept := map[string]bool{}
	if m.launcher != "containerd" {
		return kept, nil
	}
	space := "dals-" + m.id
	c, err := containerd.New(filepath.Join(m.dir, "containerd", "containerd.sock"), containerd.WithDefaultNamespace(space))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	own, err := c.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, one := range own {
		known[one.ID] = true
		if _, warm := one.Labels["dals.warm"]; warm {
			kept[one.ID] = true
		}
	}
	if len(kept) != m.warm {
		return nil, fmt.Errorf("%d workers are kept warm, not %d", len(kept), m.warm)
	}
	for _, pattern := range []string{
		filepath.Join("/sys/fs/cgroup/*", space, "*"), filepath.Join("/sys/fs/cgroup", space, "*"),
		filepath.Join(m.dir, "containerd/state/io.containerd.runtime.v2.task", space, "*"), filepath.Join(m.dir, "containerd/runtime", space, "*"),
	} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.IsDir() && !known[filepath.Base(path)] {
				return nil, fmt.Errorf("left: %s", path)
			}
		}
	}
	r, err := registry.OpenReadOnly(ctx, filepath.Join(m.dir, "registry.db"))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	held, err := r.HeldUIDs(ctx)
	if err == nil && len(held) != m.warm {
		err = fmt.Errorf("uids held: %v", held)
	}
	return kept, err
}
