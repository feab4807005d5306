package sdk

import (
	"time"

	"github.com/google/uuid"
)

// maxRemembered bounds how many attempts are remembered at once. Beyond it a
// worker is busy: forgetting one early would let it run twice.
const maxRemembered = 1 << 20

// replays remembers the last attempt of every envelope for as long as one might
// still pass the gate. The desk's lock guards it. It lives in memory: after a
// restart the host counts attempts on, and what it stamped before is past its
// deadline soon.
type replays struct {
	last  map[uuid.UUID]remembered
	most  int
	swept time.Time
}

type remembered struct {
	attempt uint32
	until   int64 // Unix seconds
}

// Old attempts are swept out by claims, when there are many and not too often.
const (
	sweepFrom  = 1024
	sweepEvery = 10 * time.Second
)

func newReplays() *replays { return &replays{last: map[uuid.UUID]remembered{}, most: maxRemembered} }

// claim remembers an attempt, or says why it must not run.
func (r *replays) claim(id uuid.UUID, attempt uint32, until, now time.Time) *refusal {
	if len(r.last) >= sweepFrom && now.Sub(r.swept) >= sweepEvery {
		r.sweep(now)
	}
	seen, ok := r.last[id]
	switch {
	case ok && attempt <= seen.attempt:
		return refuse(codeReplayed, "attempt %d of this envelope has been here", seen.attempt)
	case !ok && len(r.last) >= r.most:
		return refuse(codeBusy, "%d envelopes are remembered", len(r.last))
	}
	r.last[id] = remembered{attempt: attempt, until: until.Unix() + 1}
	return nil
}

// sweep forgets what has passed, into a new map: an old one keeps its memory.
func (r *replays) sweep(now time.Time) {
	kept := make(map[uuid.UUID]remembered)
	for id, seen := range r.last {
		if seen.until >= now.Unix() {
			kept[id] = seen
		}
	}
	r.last, r.swept = kept, now
}
