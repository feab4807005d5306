package door

import (
	"context"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
)

// refusals are counted by code and told of together: a worker that is refused
// over and over must not fill the record.
type refusals struct {
	door   *door
	mu     sync.Mutex
	counts map[string]refused
}

// refused is how often, and what the first was about.
type refused struct {
	n     uint64
	first string
}

// maxReason bounds what of the first reason is kept, in bytes.
const maxReason = 300

func (r *refusals) add(no *worker.Refusal) {
	r.door.traffic.refused.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts[no.Code]
	if c.n == 0 {
		c.first = no.Reason[:min(len(no.Reason), maxReason)]
	}
	c.n++
	r.counts[no.Code] = c
}

// summarize writes one entry for each code that there was.
func (r *refusals) summarize(ctx context.Context) {
	r.mu.Lock()
	counts := r.counts
	r.counts = map[string]refused{}
	r.mu.Unlock()
	for code, c := range counts {
		_, err := r.door.Recorder.Record(ctx, record.Entry{
			At: time.Now(), Kind: record.EgressRefused, Worker: record.NameOf(r.door.worker),
			Refusal: &record.RefusalFields{Code: code, Reason: c.first, Count: c.n},
		})
		if err != nil {
			r.door.Logger.Warn("refused connections not recorded", "serial", r.door.worker.Serial, "code", code, "count", c.n, "error", err)
		}
	}
}
