package broker

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// receiptOf waits for the next receipt on a stream.
func receiptOf(stream exchangeStream) (*workerv1.Attempt, error) {
	for {
		request, err := stream.Recv()
		if err != nil || request.GetReceipt() != nil {
			return request.GetReceipt(), err
		}
	}
}

// TestBadResults: none of them is taken, each is receipted so that the worker
// forgets it, and the good one still counts.
func TestBadResults(t *testing.T) {
	t.Parallel()
	const other = "DMN-TP-1-0000abcd-00002"
	_, stranger := pair(t)
	f := &fake{}
	receipts := make(chan *workerv1.Attempt, 10)
	edit := func(d *workerv1.Delivery, edit func(*workerv1.Header)) *workerv1.Envelope {
		h := &workerv1.Header{}
		good := f.answer(d, []byte("bad"))
		if err := proto.Unmarshal(good.GetHeader(), h); err != nil {
			panic(err)
		}
		edit(h)
		e, err := envelope.New(f.key, h.GetSender(), h, []byte("bad"))
		if err != nil {
			panic(err)
		}
		return e
	}
	f.exchange = func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		d := request.GetDelivery()
		forged := f.answer(d, []byte("x"))
		forged.Payload = []byte("y")
		another := edit(d, func(*workerv1.Header) {})
		another.Proof = f.answer(d, []byte("z")).Proof
		key := f.key
		f.key = stranger
		foreign := f.answer(d, []byte("x"))
		f.key = key
		for _, bad := range []*workerv1.Envelope{
			forged, another, foreign,
			edit(d, func(h *workerv1.Header) { h.Sender = other }),
			edit(d, func(h *workerv1.Header) { h.Kind = "template.other" }),
			edit(d, func(h *workerv1.Header) { h.Recipient = other }),
			edit(d, func(h *workerv1.Header) { h.Attempt = 2 }),
			edit(d, func(h *workerv1.Header) { h.InReplyTo = "00000000-0000-0000-0000-000000000000" }),
		} {
			if err := give(stream, bad); err != nil {
				return err
			}
			a, err := receiptOf(stream)
			if err != nil {
				return err
			}
			receipts <- a
		}
		if err := errors.Join(give(stream, &workerv1.Envelope{Header: []byte("noise")}), give(stream, f.answer(d, []byte("good")))); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}
	r := served(t, f)
	reply, err := r.send(t.Context(), 1, limit)
	if err != nil || string(reply.Result.GetPayload()) != "good" || len(receipts) != 8 {
		t.Fatalf("%s, %d receipts: %v", reply.Result.GetPayload(), len(receipts), err)
	}
	r.settled()
	if n := r.log.count("result not accepted"); n != 1 {
		t.Errorf("%d lines for bad results of one connection", n)
	}
}

// TestFloodOfBadResults: they end the link, not the log.
func TestFloodOfBadResults(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string]*workerv1.ExchangeResponse{
		"noise": {Frame: &workerv1.ExchangeResponse_Result{Result: &workerv1.Envelope{Header: []byte("noise")}}},
		"empty": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{}, 100)
			r := served(t, &fake{exchange: func(stream exchangeStream) error {
				defer func() { ended <- struct{}{} }()
				err := hello(stream, nil)
				for err == nil {
					err = stream.Send(frame)
				}
				return err
			}})
			select {
			case <-ended:
			case <-time.After(limit):
				t.Fatal("the link lives on")
			}
			r.Close()
			links := int(r.fake.opened.Load())
			if n := r.log.count("result not accepted"); n == 0 || n > links {
				t.Errorf("%d lines on %d links", n, links)
			}
		})
	}
}

// TestFloodOfLateResults: what nobody waits for costs no write and ends nothing.
func TestFloodOfLateResults(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.exchange = func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		result := f.answer(request.GetDelivery(), []byte("x"))
		for range 5 * maxBad {
			if err := give(stream, result); err != nil {
				return err
			}
		}
		return f.echoOn(stream)
	}
	r := served(t, f)
	for range 2 {
		if _, err := r.send(t.Context(), 1, limit); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.log.count("nothing is owed"); n != 1 || f.opened.Load() != 1 {
		t.Errorf("%d lines, %d links", n, f.opened.Load())
	}
	r.settled()
}

// TestFullDisk: what cannot be recorded is told to the sender, and recorded when
// there is space again; a result that came meanwhile is not lost. And what a
// worker can make the host hold meanwhile is bounded.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := newDisk(t)
	f := &fake{}
	const flood = 14
	deliveries := make(chan *workerv1.Delivery, flood+1)
	full := make(chan struct{})
	var given atomic.Int64
	f.exchange = func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		for range flood + 1 {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			deliveries <- request.GetDelivery()
		}
		<-full
		for range flood {
			if err := give(stream, f.answer(<-deliveries, make([]byte, 4<<20))); err != nil {
				return err
			}
			given.Add(1)
		}
		<-stream.Context().Done()
		return nil
	}
	r := newRigIn(t, f, disk.dir)
	r.serve()
	r.attach()
	answers := make(chan error, flood)
	var busy sync.WaitGroup
	for range flood {
		busy.Go(func() {
			_, err := r.send(t.Context(), 1, MaxTimeout)
			answers <- err
		})
	}
	eventually(t, "all are out", func() bool { return len(deliveries) == flood })
	unanswered := make(chan error, 1)
	busy.Go(func() {
		_, err := r.send(t.Context(), 1, 5*time.Second) // it is over when the disk is full, not before
		unanswered <- err
	})
	eventually(t, "the last is out", func() bool { return len(deliveries) == flood+1 })
	disk.fill()
	for r.registry.Update(t.Context(), grow) == nil {
	}
	close(full)
	if err := <-unanswered; !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("the sender of what could not be closed: %v", err)
	}
	if n := given.Load(); n >= flood || len(answers) != 0 {
		t.Errorf("%d results of 4 MiB were taken, %d recorded, with no space to record them", n, len(answers))
	}
	if _, err := r.send(t.Context(), 1, time.Second); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("admitted with no space: %v", err)
	}
	disk.free()
	busy.Wait()
	for range flood {
		if err := <-answers; err != nil {
			t.Errorf("a result that waited for space: %v", err)
		}
	}
	r.settled()
	if late := r.count(record.Result, statusDeadline); late != 1 || f.opened.Load() != 1 {
		t.Errorf("%d closed at their deadline, on %d links", late, f.opened.Load())
	}
	r.givenBack(r.session(serial))
}
