package workertest

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Exchange is one stream of deliveries and results, for tests that need to see
// each frame; Send needs none. A worker has one at a time: the newest. One
// goroutine may call Result while others send.
type Exchange struct {
	// Hello is the worker's first frame.
	Hello *workerv1.Hello

	worker *Worker
	stream grpc.BidiStreamingClient[workerv1.ExchangeRequest, workerv1.ExchangeResponse]
	cancel context.CancelFunc
}

// Open opens an Exchange, which ends with ctx or Close, and reads its Hello.
func (w *Worker) Open(ctx context.Context) (*Exchange, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := w.Client().Exchange(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		cancel()
		return nil, err
	}
	if first.GetHello() == nil {
		cancel()
		return nil, errors.New("open exchange: the first frame is no hello")
	}
	return &Exchange{Hello: first.GetHello(), worker: w, stream: stream, cancel: cancel}, nil
}

// Close drops the stream, as a host that dies does.
func (e *Exchange) Close() { e.cancel() }

// Deliver sends d.
func (e *Exchange) Deliver(d *workerv1.Delivery) error {
	return e.stream.Send(&workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Delivery{Delivery: d}})
}

// Receipt tells the worker that the result of a is recorded.
func (e *Exchange) Receipt(a *workerv1.Attempt) error {
	return e.stream.Send(&workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Receipt{Receipt: a}})
}

// Cancel asks the worker to end the task of a.
func (e *Exchange) Cancel(a *workerv1.Attempt) error {
	return e.stream.Send(&workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Cancel{Cancel: a}})
}

// Result is the next result. One that is not well formed and signed is an error.
func (e *Exchange) Result() (Answer, error) {
	frame, err := e.stream.Recv()
	if err != nil {
		return Answer{}, err
	}
	if frame.GetResult() == nil {
		return Answer{}, fmt.Errorf("not a result: %v", frame)
	}
	return e.worker.readAnswer(frame.GetResult())
}
