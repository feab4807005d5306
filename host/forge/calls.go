package forge

import (
	"context"
	"errors"
	"sync"

	"github.com/dals-host/dals-host/host/worker"
)

// calls lets a second identical request for a name join the first while it
// runs. (Package singleflight would hand the first caller's cancellation to
// all who joined.)
type calls struct {
	mu     *sync.Mutex
	byName map[string]*call
}

type call struct {
	asked  worker.Worker
	done   chan struct{}
	result Result
	err    error
}

func newCalls() calls { return calls{mu: &sync.Mutex{}, byName: map[string]*call{}} }

// join runs forge, unless a call for the name is running: one with the same
// request is waited for, one with another is a conflict.
func (c calls) join(ctx context.Context, asked worker.Worker, forge func() (Result, error)) (Result, error) {
	for {
		c.mu.Lock()
		running := c.byName[asked.Name]
		if running == nil {
			running = &call{asked: asked, done: make(chan struct{})}
			c.byName[asked.Name] = running
			c.mu.Unlock()
			c.lead(running, forge)
			return running.result, running.err
		}
		c.mu.Unlock()
		if running.asked.RequestSHA256 != asked.RequestSHA256 {
			return Result{}, conflict(running.asked, asked)
		}
		select {
		case <-running.done:
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
		if errors.Is(running.err, context.Canceled) || errors.Is(running.err, context.DeadlineExceeded) {
			continue // the first caller gave up, we did not
		}
		return Result{Worker: running.result.Worker, Existed: running.err == nil}, running.err
	}
}

func (c calls) lead(running *call, forge func() (Result, error)) {
	defer func() {
		c.mu.Lock()
		delete(c.byName, running.asked.Name)
		c.mu.Unlock()
		close(running.done)
	}()
	running.result, running.err = forge()
}
