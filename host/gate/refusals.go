package gate

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
)

// refusals tells the record who was refused. Before the proof holds anybody
// could have written the envelope: such refusals are counted by peer (the
// process that sent it) and code and written as one entry a minute, so that
// noise cannot fill the record and no claimed sender is blamed. After it each
// gets an entry of its own, also when its sender has hung up: else who probes
// would leave no trace.
type refusals struct {
	recorder Recorder
	log      logger
	now      func() time.Time

	mu     sync.Mutex
	counts map[refusalKey]uint64
}

type refusalKey struct{ peer, code string }

type logger interface {
	Warn(msg string, args ...any)
}

const (
	summaryEvery = time.Minute
	// maxPeers bounds the counts between two summaries; what goes beyond is
	// counted for the peer "others".
	maxPeers = 1000
	// maxReason bounds a reason in the record, in runes.
	maxReason = 300
)

func newRefusals(c Config) *refusals {
	return &refusals{recorder: c.Recorder, log: c.Logger, now: c.Now, counts: map[refusalKey]uint64{}}
}

func (r *refusals) unproven(peer string, err error) error {
	var refusal *worker.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := refusalKey{peer, refusal.Code}
	if _, known := r.counts[key]; !known && len(r.counts) >= maxPeers {
		key.peer = "others"
	}
	r.counts[key]++
	return err
}

func (r *refusals) proven(ctx context.Context, peer string, a *Admission, err error) error {
	var refusal *worker.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	// What a client sends beyond its rate is not worth a durable write each.
	if refusal.Code == RateLimited {
		return r.unproven(peer, err)
	}
	entry := record.Entry{
		At: r.now(), Kind: record.Refused,
		Envelope: record.FieldsOfEnvelope(a.Envelope, a.Header, a.Worker.Serial),
		Refusal:  &record.RefusalFields{Code: refusal.Code, Reason: cutRunes(refusal.Reason, maxReason), Peer: peer, Count: 1},
	}
	if failed := r.recorder.Record(context.WithoutCancel(ctx), entry); failed != nil {
		return errors.Join(err, failed)
	}
	return err
}

func (r *refusals) run(ctx context.Context) error {
	ticker := time.NewTicker(summaryEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.summarize(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			r.summarize(last)
			return nil
		}
	}
}

func (r *refusals) summarize(ctx context.Context) {
	r.mu.Lock()
	counts := r.counts
	r.counts = map[refusalKey]uint64{}
	r.mu.Unlock()
	for key, n := range counts {
		err := r.recorder.Record(ctx, record.Entry{
			At: r.now(), Kind: record.RefusedSummary,
			Refusal: &record.RefusalFields{Code: key.code, Peer: key.peer, Count: n},
		})
		if err != nil {
			r.log.Warn("refusals not recorded", "peer", key.peer, "code", key.code, "count", n, "error", err)
		}
	}
}

// cutRunes is the beginning of s, of at most n runes.
func cutRunes(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
