package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// What one worker may make the host hold and put up with on one link.
const (
	acceptingBytes = 16 << 20 // of results that are being recorded
	acceptingCount = 128      // of them: enough to share a commit
	maxBad         = 100      // frames that are no answer to anything
)

// inbox takes in what a worker sends on one link.
type inbox struct {
	s    *session
	l    *link
	room *semaphore.Weighted
	end  context.CancelCauseFunc // of the link

	bad  atomic.Int64
	late atomic.Int64 // results that nothing is owed for
}

func newInbox(s *session, l *link, end context.CancelCauseFunc) *inbox {
	return &inbox{s: s, l: l, room: semaphore.NewWeighted(acceptingBytes), end: end}
}

// run reads until the stream ends. It waits for what is being recorded.
func (in *inbox) run(ctx context.Context, exchange workerv1.WorkerService_ExchangeClient) error {
	var accepting sync.WaitGroup
	defer in.tally()
	defer accepting.Wait()
	for {
		frame, err := exchange.Recv()
		if err != nil {
			return fmt.Errorf("receive result: %w", err)
		}
		in.s.pulse.alive()
		result := frame.GetResult()
		if result == nil {
			in.refuse(fmt.Errorf("frame without a result: %w", worker.ErrInvalid))
			continue
		}
		weight := max(int64(proto.Size(frame)), acceptingBytes/acceptingCount)
		if err := in.room.Acquire(ctx, weight); err != nil {
			return err
		}
		accepting.Go(func() {
			defer in.room.Release(weight)
			in.take(ctx, result)
		})
	}
}

// take accepts one result, or refuses it for good; either way the worker is told
// to forget it. What cannot be recorded now is tried again: the worker would
// offer it on its next connection only.
func (in *inbox) take(ctx context.Context, result *workerv1.Envelope) {
	a, err := in.s.b.accept(in.s.worker, result)
	if !final(err) {
		in.s.b.Logger.Error("result not recorded yet", "serial", in.s.worker.Serial, "envelope", a.id, "attempt", a.number, "error", err)
	}
	for !final(err) {
		if !pause(ctx, retryEvery) {
			return
		}
		a, err = in.s.b.accept(in.s.worker, result)
	}
	switch {
	case errors.Is(err, errNotOwed):
		in.tooLate(a)
	case err != nil:
		in.refuse(err)
	}
	if a.id != "" {
		in.l.receipt(a)
	}
}

// final says whether an accept's verdict will not change.
func final(err error) bool {
	return err == nil || errors.Is(err, errNotOwed) || errors.Is(err, worker.ErrInvalid)
}

// refuse counts a frame that is no answer; the first is logged, and too many end
// the link.
func (in *inbox) refuse(err error) {
	switch in.bad.Add(1) {
	case 1:
		in.s.b.Logger.Warn("result not accepted", "serial", in.s.worker.Serial, "error", clean(err.Error()))
	case maxBad:
		in.end(fmt.Errorf("%d of its frames were no result that it owes: %w", maxBad, worker.ErrInvalid))
	}
}

// tooLate counts a result that nobody waits for any more. An honest worker that
// is slow sends such, so they end no link.
func (in *inbox) tooLate(a attempt) {
	if in.late.Add(1) == 1 {
		in.s.b.Logger.Warn("result refused: nothing is owed for it", "serial", in.s.worker.Serial, "envelope", a.id, "attempt", a.number)
	}
}

// tally logs what was counted and not logged.
func (in *inbox) tally() {
	if bad, late := in.bad.Load(), in.late.Load(); bad > 1 || late > 1 {
		in.s.b.Logger.Warn("results not accepted on a connection", "serial", in.s.worker.Serial, "bad", bad, "not_owed", late)
	}
}
