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
	r.count(no.Code, refused{1, no.Reason[:min(len(no.Reason), maxReason)]})
}

// count counts more of a code. The caller holds mu.
func (r *refusals) count(code string, more refused) {
	if c, ok := r.counts[code]; ok {
		more = refused{c.n + more.n, c.first}
	}
	r.counts[code] = more
}

// summarize writes one entry for each code that there was. What cannot be written
// is counted on: the next one has it.
func (r *refusals) summarize(ctx context.Context) {
	r.mu.Lock()
	counts := r.counts
	r.counts = map[string]refused{}
	r.mu.Unlock()
	for code, c := range counts {
		if _, err := r.door.Recorder.Record(ctx, r.entry(code, c)); err != nil {
			r.door.Logger.Warn("refusals at a door not recorded", "serial", r.door.worker.Serial, "code", code, "count", c.n, "error", err)
			r.mu.Lock()
			r.count(code, c)
			r.mu.Unlock()
		}
	}
}

// entry is that of connections, or of calls that did not get as far as the gate,
// which records those that it refuses itself.
func (r *refusals) entry(code string, c refused) record.Entry {
	e := record.Entry{At: time.Now(), Kind: record.EgressRefused, Worker: record.NameOf(r.door.worker), Refusal: &record.RefusalFields{Code: code, Reason: c.first, Count: c.n}}
	if isCall(code) {
		e.Kind, e.Worker, e.Refusal.Peer = record.RefusedSummary, nil, "worker "+string(r.door.worker.Serial)
	}
	return e
}
