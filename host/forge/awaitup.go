package forge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// promptHeartbeat is how soon a healthy worker answers, with room to spare.
const promptHeartbeat = 100 * time.Millisecond

// awaitUp waits for the word of a worker that was started at began that all of it
// is there, or for its end, whichever comes first. logged is how long its log was
// then.
func (f *Forge) awaitUp(ctx context.Context, w worker.Worker, began time.Time, logged int64) error {
	f.Sessions.Attach(w, f.Stage.Dir(w.Serial))
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		select { // most workers answer before it is worth asking for their end
		case <-time.After(promptHeartbeat):
		case <-ctx.Done():
			ended <- ctx.Err()
			return
		}
		exit, err := f.Launcher.Wait(ctx, w.Serial)
		if err == nil {
			err = fmt.Errorf("the worker ended: %s%s: %w", exit, f.lastWords(w.Serial, logged), worker.ErrUnavailable)
		}
		ended <- err
	}()
	err := f.Sessions.AwaitHeartbeat(ctx, w.Serial, began)
	cancel()
	if end := <-ended; err != nil && !errors.Is(end, context.Canceled) && !errors.Is(end, context.DeadlineExceeded) {
		return end
	}
	if errors.Is(err, worker.ErrDeadline) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w%s", err, f.lastWords(w.Serial, logged))
	}
	return err
}
