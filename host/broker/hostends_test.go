package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestHostEndsSender: the task of a sender that goes away is cancelled; that of
// one whom the host cuts off, because it ends itself, runs on.
func TestHostEndsSender(t *testing.T) {
	t.Parallel()
	delivered, cancelled := make(chan string, 2), make(chan string, 2)
	f := &fake{}
	f.exchange = func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		var asked []*workerv1.Header
		for {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			if d := request.GetDelivery(); d != nil {
				h := &workerv1.Header{}
				if err := proto.Unmarshal(d.GetEnvelope().GetHeader(), h); err != nil {
					return err
				}
				asked = append(asked, h)
				delivered <- h.GetId()
			}
			if c := request.GetCancel(); c != nil {
				cancelled <- c.GetEnvelopeId()
				for _, h := range asked {
					if err := give(stream, f.answerTo(h, []byte("done"))); err != nil {
						return err
					}
				}
			}
		}
	}
	r := up(t, f)
	var ids []string
	for _, cause := range []error{fmt.Errorf("the host ends: %w", worker.ErrUnavailable), nil} {
		ctx, cancel := context.WithCancelCause(t.Context())
		sent := make(chan error, 1)
		go func() {
			_, err := r.send(ctx, 1, time.Minute)
			sent <- err
		}()
		ids = append(ids, <-delivered)
		cancel(cause)
		want := context.Canceled
		if cause != nil {
			want = worker.ErrUnavailable
		}
		if err := <-sent; !errors.Is(err, want) {
			t.Errorf("sender heard %v, want %v", err, want)
		}
	}
	if got := <-cancelled; got != ids[1] {
		t.Errorf("the task of %s was cancelled, want that of %s", got, ids[1])
	}
	r.settled()
	if n := r.count(record.Result, "ok"); n != 2 {
		t.Errorf("%d results recorded, want 2", n)
	}
}
