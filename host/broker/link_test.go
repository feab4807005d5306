package broker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestLinksThatBreak: whatever a connection's end does to a delivery, what
// reached the new connection is not closed as lost with the old.
func TestLinksThatBreak(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.exchange = func(stream exchangeStream) error {
		ended, reached := make(chan error, 1), make(chan struct{})
		go func() {
			ended <- f.echo(&watched{stream, sync.OnceFunc(func() { close(reached) })})
		}()
		select {
		case err := <-ended:
			return err
		case <-reached: // a link that is of no use breaks nothing
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Duration(5+rand.IntN(20)) * time.Millisecond):
			return nil
		}
	}
	r := served(t, f)
	var answered, lost atomic.Int64
	var busy sync.WaitGroup
	least, most := time.Now().Add(2*time.Second), time.Now().Add(limit)
	enough := func() bool {
		now := time.Now()
		return now.After(most) || now.After(least) && answered.Load() > 0 && lost.Load() > 0
	}
	for range 8 {
		busy.Go(func() {
			for !enough() {
				switch _, err := r.send(t.Context(), 2, limit); {
				case err == nil:
					answered.Add(1)
				case errors.Is(err, worker.ErrUnavailable):
					lost.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	busy.Wait()
	r.settled()
	if answered.Load() == 0 || lost.Load() == 0 {
		t.Errorf("%d answered, %d lost: this shows nothing", answered.Load(), lost.Load())
	}
	// A link may end between a result's way in and its record; then the next
	// Hello comes first. On one and the same link it never does.
	if n := r.log.count("nothing is owed for it"); n != 0 {
		t.Errorf("%d links brought a result for what was closed as lost on the way (%d answered, %d lost)", n, answered.Load(), lost.Load())
	}
}

// watched tells of the first delivery that comes.
type watched struct {
	exchangeStream
	reached func()
}

func (w *watched) Recv() (*workerv1.ExchangeRequest, error) {
	request, err := w.exchangeStream.Recv()
	if request.GetDelivery() != nil {
		w.reached()
	}
	return request, err
}

// TestHelloTellsOfOthers: a Hello closes what the worker does not know any more,
// and leaves alone what it has and what is routed on its own link.
func TestHelloTellsOfOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t, &fake{})
	mine, other := &link{}, &link{}
	owed := map[string]*delivery{}
	for i, on := range map[string]*link{"gone": other, "kept": other, "mine": mine, "of an earlier host": nil} {
		e := r.envelope(nil, []byte(i))
		h, err := envelope.Parse(e)
		if err != nil {
			t.Fatal(err)
		}
		d := newDelivery()
		d.link = on
		if err := r.admit(d, Admitted{Envelope: e, Header: h, Worker: r.peer}, time.Minute); err != nil {
			t.Fatal(err)
		}
		r.oversee(d, time.Minute)
		owed[i] = d
	}
	s := &session{b: r.Broker, worker: r.peer}
	s.settleHello(mine, &workerv1.Hello{Kept: []*workerv1.Attempt{owed["kept"].attempt().proto()}})
	<-owed["gone"].settled
	<-owed["of an earlier host"].settled
	if owed["kept"].isSettled() || owed["mine"].isSettled() || r.count(record.Result, statusLost) != 2 {
		t.Error("a delivery that lives was closed")
	}
}

// TestLastWords: a worker that ends closes its streams in any order, and is
// detached as soon as it has ended; what it gave before that counts.
func TestLastWords(t *testing.T) {
	t.Parallel()
	for name, detach := range map[string]bool{"heartbeats end first": false, "detached": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, asked := &fake{}, make(chan struct{})
			f.beat = func(stream workerv1.WorkerService_HeartbeatServer) error {
				err := stream.Send(&workerv1.HeartbeatResponse{Serial: string(serial), VaultIntegrity: true})
				<-asked
				return err
			}
			f.exchange = func(stream exchangeStream) error {
				err := hello(stream, nil)
				request, failed := stream.Recv()
				if err := errors.Join(err, failed); err != nil {
					return err
				}
				close(asked)
				select {
				case <-stream.Context().Done(): // it is cut
					return stream.Context().Err()
				case <-time.After(300 * time.Millisecond):
					return give(stream, f.answer(request.GetDelivery(), []byte("bye")))
				}
			}
			r := up(t, f)
			detached := make(chan struct{})
			go func() {
				defer close(detached)
				<-asked
				if detach {
					r.Detach(t.Context(), serial)
				}
			}()
			reply, err := r.send(t.Context(), 1, time.Minute)
			if err != nil || string(reply.Result.GetPayload()) != "bye" {
				t.Errorf("%s, %v", reply.Result.GetPayload(), err)
			}
			<-detached
		})
	}
}

// TestDrain waits for what a worker owes, and for nothing that cannot come.
func TestDrain(t *testing.T) {
	t.Parallel()
	for name, gives := range map[string]bool{"gives": true, "ends": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, asked, goOn := &fake{}, make(chan struct{}), make(chan struct{})
			f.exchange = func(stream exchangeStream) error {
				if err := hello(stream, nil); err != nil || f.opened.Load() > 1 {
					return err
				}
				request, err := stream.Recv()
				if err != nil {
					return err
				}
				close(asked)
				<-goOn
				if !gives {
					return errors.New("enough")
				}
				if err := give(stream, f.answer(request.GetDelivery(), []byte("bye"))); err != nil {
					return err
				}
				<-stream.Context().Done()
				return nil
			}
			r := up(t, f)
			r.Drain(t.Context(), serial) // of what it does not owe
			var calls sync.WaitGroup
			calls.Go(func() { _, _ = r.send(t.Context(), 1, time.Minute) })
			<-asked
			short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			r.Drain(short, serial)
			if short.Err() == nil {
				t.Error("what is owed was not waited for")
			}
			close(goOn)
			r.Drain(t.Context(), serial)
			if n := r.count(record.Result, "ok"); gives && n != 1 {
				t.Errorf("drained after %d results", n)
			}
			r.Detach(t.Context(), serial)
			r.Drain(t.Context(), serial) // of nobody
			calls.Wait()
		})
	}
}

// TestReconnectStorm: a link that does not last earns no eager start, and one
// reason is told once.
func TestReconnectStorm(t *testing.T) {
	t.Parallel()
	f := &fake{exchange: func(stream exchangeStream) error {
		return errors.Join(hello(stream, nil), errors.New("enough"))
	}}
	r := served(t, f)
	began := time.Now()
	time.Sleep(3 * time.Second) // the rate is the point
	n, took := f.opened.Load(), time.Since(began)
	if n > 22+int64(took/time.Second) { // the eager ones, and one a second
		t.Errorf("%d connections in %s", n, took)
	}
	eventually(t, "it tries again", func() bool { return f.opened.Load() >= 3 })
	if n := r.log.count("[INFO]  worker not connected"); n > 2 {
		t.Errorf("told %d times", n)
	}
}

// TestBadHello: a Hello that is late, or names too much, is none.
func TestBadHello(t *testing.T) {
	t.Parallel()
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		ended := make(chan time.Time, 100)
		r := newRig(t, &fake{exchange: func(stream exchangeStream) error {
			<-stream.Context().Done()
			ended <- time.Now()
			return nil
		}})
		if r.helloTimeout != 10*time.Second {
			t.Errorf("a host waits %s", r.helloTimeout)
		}
		r.helloTimeout = 400 * time.Millisecond
		r.serve()
		began := time.Now()
		r.attach()
		select {
		case at := <-ended:
			if took := at.Sub(began); took < r.helloTimeout {
				t.Errorf("given up after %s", took)
			}
		case <-time.After(limit):
			t.Fatal("waits for ever")
		}
		eventually(t, "it is said why", func() bool { return r.log.count("no hello within 400ms") > 0 })
	})
	t.Run("too much", func(t *testing.T) {
		t.Parallel()
		f := &fake{exchange: func(stream exchangeStream) error {
			kept := make([]*workerv1.Attempt, maxHello+1)
			for i := range kept {
				kept[i] = &workerv1.Attempt{EnvelopeId: fmt.Sprint(i), Attempt: 1}
			}
			if err := hello(stream, kept); err != nil {
				return err
			}
			<-stream.Context().Done()
			return nil
		}}
		r := served(t, f)
		if _, err := r.send(t.Context(), 1, 500*time.Millisecond); codeOf(err) != "worker_unavailable" {
			t.Errorf("sent to it: %v", err)
		}
		eventually(t, "it is said why", func() bool { return r.log.count("names 4097 attempts") > 0 })
	})
}

// TestAttachAndClose races them; the race detector and goleak judge.
func TestAttachAndClose(t *testing.T) {
	t.Parallel()
	r := newRig(t, &fake{})
	for range 50 {
		r.open()
		var racing sync.WaitGroup
		for range 4 {
			racing.Go(func() { r.Attach(r.peer, r.dir) })
		}
		racing.Go(r.Close)
		racing.Wait()
		r.Detach(t.Context(), serial)
	}
}

// TestNewHost: what an earlier host left is accepted from the start, its time
// runs from Start on, and it can be closed before.
func TestNewHost(t *testing.T) {
	t.Parallel()
	f := &fake{}
	r := newRig(t, f)
	asked := &workerv1.Header{}
	owe := func() {
		e := r.envelope(nil, []byte("x"))
		h, err := envelope.Parse(e)
		if err != nil {
			t.Fatal(err)
		}
		asked = h
		r.update(func(tx *registry.Tx) error {
			return tx.PutDelivery(registry.Delivery{
				EnvelopeID: h.GetId(), Sender: h.GetSender(), Serial: serial, Attempt: 1, Header: e.GetHeader(),
				AdmittedAt: time.Now().Add(-time.Hour), Deadline: time.Now().Add(-time.Minute),
			})
		})
		r.open()
	}
	outstanding := func() int { return len(r.outstanding(func(*delivery) bool { return true })) }

	owe()
	f.exchange = func(stream exchangeStream) error {
		kept := &workerv1.Attempt{EnvelopeId: asked.GetId(), Attempt: 1}
		if err := errors.Join(hello(stream, []*workerv1.Attempt{kept}), give(stream, f.answerTo(asked, []byte("made meanwhile")))); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}
	r.serve()
	r.Attach(r.peer, r.dir)
	eventually(t, "the result is recorded", func() bool { return r.count(record.Result, "ok") == 1 && outstanding() == 0 })
	r.Start()
	r.Close()

	owe()
	if d := r.outstanding(func(*delivery) bool { return true }); len(d) != 1 || d[0].overseen {
		t.Errorf("its time runs before Start: %+v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	r.Detach(ctx, serial)
	if n := r.count(record.Result, statusLost); n != 1 || ctx.Err() != nil {
		t.Errorf("%d closed before Start, %v", n, ctx.Err())
	}
	r.Start()
	if outstanding() != 0 {
		t.Error("what was closed is outstanding again")
	}
}
