package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
)

// streamed gives one by one what comes in batches, until the host ends the stream or
// nobody wants more. The first error, about what, is the last thing that it gives.
func streamed[Request, Batch, Item any](
	ctx context.Context, c *Client, what string, request *Request,
	open func(context.Context, *Request, ...grpc.CallOption) (grpc.ServerStreamingClient[Batch], error),
	items func(*Batch) []Item,
) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := open(ctx, request)
		for err == nil {
			var batch *Batch
			if batch, err = stream.Recv(); err != nil {
				break
			}
			for _, item := range items(batch) {
				if !yield(item, nil) {
					return
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			var none Item
			yield(none, fmt.Errorf("read %s: %w", what, c.fault(ctx, err)))
		}
	}
}

// sinceUnixMs is a time as requests have it: 0 for the beginning.
func sinceUnixMs(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
