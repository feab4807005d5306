package process

import (
	"context"
	"fmt"

	"github.com/dals-host/dals-host/host/worker"
)

// Usage is not counted: to find all processes of one worker is to look at all of
// the machine.
func (l *Launcher) Usage(_ context.Context, serial worker.Serial) (worker.Usage, error) {
	return worker.Usage{}, fmt.Errorf("read usage of %s: plain processes are not counted: %w", serial, worker.ErrNotFound)
}
