package broker

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestSend(t *testing.T) {
	t.Parallel()
	r := served(t, &fake{})
	reply, err := r.Send(t.Context(), "test", r.envelope(nil, []byte("hi")), limit)
	if err != nil || string(reply.Result.GetPayload()) != "hi" || reply.ResultIndex != reply.AdmittedIndex+1 {
		t.Fatalf("%+v, %v", reply, err)
	}
	if _, err := r.send(t.Context(), 1, MaxTimeout+1); !errors.Is(err, worker.ErrInvalid) {
		t.Fatalf("timeout too long: %v", err)
	}
	// All places were given back, and a worker that answers is never overloaded.
	var busy sync.WaitGroup
	for range maxOwed {
		busy.Go(func() {
			for range 2 {
				if _, err := r.send(t.Context(), 100, limit); err != nil {
					t.Error(err)
				}
			}
		})
	}
	busy.Wait()
	r.settled()
	r.givenBack(r.session(serial))
}

// TestWorkerThatNeverReads: senders and Close are not pinned by a worker whose
// stream is full.
func TestWorkerThatNeverReads(t *testing.T) {
	t.Parallel()
	r := up(t, &fake{exchange: func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}})
	began := time.Now()
	var late, left atomic.Int64
	var busy sync.WaitGroup
	for i := range 40 {
		busy.Go(func() {
			ctx, timeout := t.Context(), 400*time.Millisecond
			e := r.envelope(nil, make([]byte, 1<<20))
			if i%4 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
				defer cancel()
				timeout = MaxTimeout
			}
			_, err := r.Send(ctx, "test", e, timeout)
			switch {
			case errors.Is(err, worker.ErrDeadline):
				late.Add(1)
			case errors.Is(err, context.DeadlineExceeded):
				left.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	busy.Wait()
	if took := time.Since(began); took > limit || late.Load() != 30 || left.Load() != 10 {
		t.Errorf("%d at their deadline, %d left, after %s", late.Load(), left.Load(), took)
	}
	for range 1000 { // cancels are dropped, not waited for
		r.cancelTask(attempt{serial, "x", 1})
	}
	closed := make(chan struct{})
	go func() { r.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(limit):
		t.Fatal("close hangs")
	}
}

// TestCloseFreesSenders: a host that ends does not wait for its workers' tasks.
func TestCloseFreesSenders(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{})
	r := served(t, &fake{exchange: func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		if _, err := stream.Recv(); err != nil {
			return err
		}
		close(reached)
		<-stream.Context().Done()
		return nil
	}})
	sent := make(chan error, 1)
	go func() {
		_, err := r.send(context.Background(), 1, MaxTimeout)
		sent <- err
	}()
	<-reached
	r.Close()
	if err := <-sent; !errors.Is(err, worker.ErrUnavailable) {
		t.Fatal(err)
	}
	if left, err := r.registry.Deliveries(t.Context(), ""); err != nil || len(left) != 1 {
		t.Fatalf("%d outstanding for the next host (%v), want 1", len(left), err)
	}
}

// TestUnknownFields: what nobody checked is not carried, in either direction.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	var stowaways atomic.Int64
	f := &fake{}
	f.exchange = func(stream exchangeStream) error {
		if err := hello(stream, nil); err != nil {
			return err
		}
		for {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			d := request.GetDelivery()
			if d == nil {
				continue
			}
			stowaways.Add(int64(len(d.GetEnvelope().ProtoReflect().GetUnknown())))
			result := f.answer(d, []byte("ok"))
			stow(result, 1000)
			if err := give(stream, result); err != nil {
				return err
			}
		}
	}
	r := served(t, f)
	e := r.envelope(nil, []byte("x"))
	stow(e, 5<<20)
	stow(e.GetProof(), 100)
	reply, err := r.Send(t.Context(), "test", e, limit)
	if err != nil || stowaways.Load() != 0 || f.opened.Load() != 1 {
		t.Fatalf("%d unknown bytes arrived on %d connections: %v", stowaways.Load(), f.opened.Load(), err)
	}
	if n := len(reply.Result.ProtoReflect().GetUnknown()); n != 0 {
		t.Errorf("%d unknown bytes in the result", n)
	}
}

// stow adds a field that nobody knows.
func stow(m proto.Message, size int) {
	field := protowire.AppendTag(nil, 1000, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(field, make([]byte, size)))
}

// TestChangedSinceTheGate: a wait may lie between the gate and the record.
func TestChangedSinceTheGate(t *testing.T) {
	t.Parallel()
	r := up(t, &fake{})
	state := func(to worker.State) func() {
		return func() { r.update(func(tx *registry.Tx) error { return tx.SetState(serial, to, "") }) }
	}
	old := &workerv1.Header{IssuedUnixMs: time.Now().Add(-3 * time.Minute).UnixMilli()}
	for _, c := range []struct {
		code   string
		header *workerv1.Header
		before func()
	}{
		{"", nil, state(worker.StateRestarting)},
		{"expired", old, state(worker.StateLive)},
		{"worker_unavailable", nil, state(worker.StateFailed)},
		{"recipient_retired", nil, state(worker.StateRetiring)},
		{"sender_revoked", nil, func() {
			state(worker.StateLive)()
			r.update(func(tx *registry.Tx) error { _, err := tx.RevokeClient("ann", time.Now()); return err })
		}},
	} {
		r.gate.before = c.before
		_, err := r.Send(t.Context(), "test", r.envelope(c.header, []byte("x")), limit)
		if codeOf(err) != c.code || (err == nil) != (c.code == "") {
			t.Errorf("want %q: %v", c.code, err)
		}
	}
	if n, refused := r.count(record.Admitted, ""), len(r.gate.refused); n != 1 || refused != 4 {
		t.Errorf("%d admitted, %d recorded as refused", n, refused)
	}
}

// TestWorkerAway: the wait for a worker ends with the envelope, counts against
// what the worker may owe, and its end says why.
func TestWorkerAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, &fake{})
	if _, err := r.send(t.Context(), 1, time.Second); codeOf(err) != "worker_unavailable" {
		t.Errorf("not attached: %v", err)
	}
	r.attach()
	eventually(t, "it was tried", func() bool { return r.log.count("no such file") > 0 })
	began := time.Now()
	h := &workerv1.Header{ExpiresUnixMs: time.Now().Add(500 * time.Millisecond).UnixMilli()}
	_, err := r.Send(t.Context(), "test", r.envelope(h, []byte("x")), MaxTimeout)
	if codeOf(err) != "worker_unavailable" || time.Since(began) > limit || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	beat, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.AwaitHeartbeat(beat, serial, time.Now()); !errors.Is(err, worker.ErrDeadline) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("heartbeat: %v", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if _, err := r.send(ctx, 1, MaxTimeout); codeOf(err) != "worker_unavailable" || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the refusal of a sender that left was not recorded: %v", err)
	}
	eventually(t, "told why", func() bool { return r.log.count("[INFO]  worker not connected") == 1 })
	r.Detach(t.Context(), serial)
	if n := r.log.count("[INFO]  worker not connected"); n != 1 {
		t.Errorf("the same reason was logged %d times", n)
	}
}

// TestOverloaded: a worker owes a bounded count and a bounded size.
func TestOverloaded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ size, fit int }{
		"count": {10, maxOwed},
		"bytes": {4 << 20, maxOwedBytes/(4<<20) - 1}, // headers count too
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fake{exchange: func(stream exchangeStream) error {
				if err := hello(stream, nil); err != nil {
					return err
				}
				for {
					if _, err := stream.Recv(); err != nil {
						return err
					}
				}
			}}
			r := up(t, f)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var busy sync.WaitGroup
			for range c.fit {
				busy.Go(func() {
					if _, err := r.send(ctx, c.size, MaxTimeout); !errors.Is(err, context.Canceled) && !errors.Is(err, worker.ErrUnavailable) {
						t.Error(err)
					}
				})
			}
			eventually(t, "all are admitted", func() bool { return r.count(record.Admitted, "") == c.fit })
			_, err := r.send(ctx, c.size, time.Second)
			if codeOf(err) != "overloaded" || r.count(record.Admitted, "") != c.fit || len(r.gate.refused) != 1 {
				t.Errorf("one more: %v, %d refused", err, len(r.gate.refused))
			}
			cancel()
			busy.Wait()
			s := r.session(serial)
			r.Detach(t.Context(), serial)
			r.settled()
			r.givenBack(s)
		})
	}
}
