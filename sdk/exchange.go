package sdk

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

type exchangeStream = grpc.BidiStreamingServer[workerv1.ExchangeRequest, workerv1.ExchangeResponse]

// Exchange carries deliveries in and results out, until either end goes or a
// newer Exchange replaces it. No task ends with it. When a host stops sending,
// the Exchange is over for it.
func (r *runner) Exchange(stream exchangeStream) error {
	out := newOutbox()
	r.desk.attach(out, r.worker.identity.WorkerSerial)
	defer r.desk.detach(out)
	r.worker.log.Info("exchange opened")
	ended := make(chan error, 2)
	r.streams.Go(func() { ended <- r.receive(stream, out) })
	r.streams.Go(func() { ended <- r.send(stream, out) })
	select {
	case err := <-ended:
		return err
	case <-out.replaced:
		return status.Error(codes.Aborted, "a newer exchange has replaced this one")
	}
}

// receive takes in what the host sends. The host closing its side is no error.
func (r *runner) receive(stream exchangeStream, out *outbox) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch frame := request.GetFrame().(type) {
		case *workerv1.ExchangeRequest_Delivery:
			r.accept(frame.Delivery, out)
		case *workerv1.ExchangeRequest_Receipt:
			r.desk.receipt(attemptOf(frame.Receipt))
		case *workerv1.ExchangeRequest_Cancel:
			r.desk.cancel(attemptOf(frame.Cancel))
		default:
			r.worker.log.Warn("ignored a frame that is not known")
		}
	}
}

// send is the only one that writes to the stream.
func (r *runner) send(stream exchangeStream, out *outbox) error {
	for {
		next, ok, closed := out.pop()
		switch {
		case ok:
			if err := r.sendItem(stream, next); err != nil {
				return err
			}
		case closed:
			return nil
		default:
			if err := wait(stream.Context(), out.wake); err != nil {
				return err
			}
		}
	}
}

func (r *runner) sendItem(stream exchangeStream, next item) error {
	if next.frame != nil {
		return stream.Send(next.frame)
	}
	result, err := r.desk.results.load(next.kept)
	if err != nil {
		header := r.desk.keptHeader(next.kept)
		if header == nil {
			return nil // receipted while it waited
		}
		r.worker.log.Error("could not offer a result", "envelope", next.kept.id, "attempt", next.kept.n, "error", err)
		if result, err = r.signDropped(header); err != nil {
			return err
		}
	}
	return stream.Send(resultFrame(result))
}

// signDropped makes what stands in for a kept result that cannot be read: its
// sender is told, and does not wait for it.
func (r *runner) signDropped(h *workerv1.Header) (*workerv1.Envelope, error) {
	task := &workerv1.Header{Id: h.InReplyTo, Sender: h.Recipient, Kind: h.Kind, Glyph: h.Glyph}
	return r.sign(task, h.Attempt, failed(codeDropped, "the task has ended, but its result cannot be read any more"))
}

func wait(ctx context.Context, wake <-chan struct{}) error {
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
