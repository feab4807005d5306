package sdk

import (
	"fmt"
	"os"
	"strings"

	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Mount is where a worker finds the folder that it was granted as mount:place, with
// place as in /mnt/photos. In a container that is place itself; without one it is a
// path of this process, as /proc/self/fd/6. What the worker may do there is up to
// the folder's modes, and to whether it was granted to be read only. What was not
// granted wraps ErrNotGranted.
func (w *Worker) Mount(place string) (path string, err error) {
	for _, g := range w.grants {
		if g.Kind == capability.Mount && g.Name == place {
			return mountedAt(os.Getenv(wire.WorkerMountsEnv), place), nil
		}
	}
	return "", fmt.Errorf("mount %s: %w", place, ErrNotGranted)
}

// mountedAt reads what a launcher says of a place.
func mountedAt(said, place string) string {
	for at := range strings.SplitSeq(said, ":") {
		if name, path, ok := strings.Cut(at, "="); ok && name == place {
			return path
		}
	}
	return place
}
