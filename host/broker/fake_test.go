package broker

import (
	"crypto/ed25519"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

type exchangeStream = workerv1.WorkerService_ExchangeServer

// fake is a worker as bad as a test wants it: it has a real identity and speaks
// the real protocol, and nil functions are those of an honest one.
type fake struct {
	workerv1.UnimplementedWorkerServiceServer
	key      ed25519.PrivateKey
	exchange func(exchangeStream) error
	beat     func(workerv1.WorkerService_HeartbeatServer) error
	opened   atomic.Int64 // exchanges
}

func (f *fake) Exchange(stream exchangeStream) error {
	f.opened.Add(1)
	if f.exchange != nil {
		return f.exchange(stream)
	}
	return f.echo(stream)
}

func (f *fake) Heartbeat(stream workerv1.WorkerService_HeartbeatServer) error {
	if f.beat != nil {
		return f.beat(stream)
	}
	beat := &workerv1.HeartbeatResponse{Serial: string(serial), VaultIntegrity: true}
	for {
		if err := stream.Send(beat); err != nil {
			return err
		}
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		beat.Pong = request.GetPing()
	}
}

// echo answers every delivery with its own payload.
func (f *fake) echo(stream exchangeStream) error {
	if err := hello(stream, nil); err != nil {
		return err
	}
	return f.echoOn(stream)
}

func (f *fake) echoOn(stream exchangeStream) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if d := request.GetDelivery(); d != nil {
			if err := give(stream, f.answer(d, d.GetEnvelope().GetPayload())); err != nil {
				return err
			}
		}
	}
}

// answer is an honest result.
func (f *fake) answer(d *workerv1.Delivery, payload []byte) *workerv1.Envelope {
	h := &workerv1.Header{}
	if err := proto.Unmarshal(d.GetEnvelope().GetHeader(), h); err != nil {
		panic(err)
	}
	return f.answerTo(h, payload)
}

func (f *fake) answerTo(h *workerv1.Header, payload []byte) *workerv1.Envelope {
	result, err := envelope.New(f.key, string(serial), &workerv1.Header{
		Recipient: h.GetSender(), Kind: h.GetKind(), InReplyTo: h.GetId(), Attempt: 1,
		Status: workerv1.ResultStatus_RESULT_STATUS_OK,
	}, payload)
	if err != nil {
		panic(err)
	}
	return result
}

func hello(stream exchangeStream, kept []*workerv1.Attempt) error {
	return stream.Send(&workerv1.ExchangeResponse{Frame: &workerv1.ExchangeResponse_Hello{
		Hello: &workerv1.Hello{Serial: string(serial), Kept: kept},
	}})
}

func give(stream exchangeStream, result *workerv1.Envelope) error {
	return stream.Send(&workerv1.ExchangeResponse{Frame: &workerv1.ExchangeResponse_Result{Result: result}})
}
