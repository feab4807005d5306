package control

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/dals-host/dals-host/host/worker"
)

// errEnds is why a call was cut: it tells a backend that the caller is still
// there, and the caller that the next host may know more.
var errEnds = fmt.Errorf("the host ends: %w", worker.ErrUnavailable)

// calls are the running ones; cut ends them all at once.
type calls struct {
	running  atomic.Int64
	lifetime context.Context
	cut      context.CancelCauseFunc
}

func newCalls() *calls {
	c := &calls{}
	c.lifetime, c.cut = context.WithCancelCause(context.Background())
	return c
}

// enter counts a call; leave is called at its end.
func (c *calls) enter(ctx context.Context) (call context.Context, leave func()) {
	c.running.Add(1)
	call, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.lifetime, func() { cancel(context.Cause(c.lifetime)) })
	return call, func() {
		stop()
		cancel(nil)
		c.running.Add(-1)
	}
}

func (c *calls) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, leave := c.enter(ctx)
	defer leave()
	resp, err := handle(ctx, req)
	return resp, outcome(ctx, err)
}

func (c *calls) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, leave := c.enter(stream.Context())
	defer leave()
	return outcome(ctx, handle(srv, &callStream{stream, ctx}))
}

// outcome says of a call that was cut why it ended.
func outcome(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errEnds) {
		return errEnds
	}
	return err
}

// callStream is a stream whose call can be cut.
type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context ends with the caller, or when the call is cut.
func (s *callStream) Context() context.Context { return s.ctx }
