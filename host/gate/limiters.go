package gate

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiters holds one token bucket per name, of a peer (a process, however many
// connections it makes) or of a client, and forgets those that are full again,
// so that names that come once do not pile up.
type limiters struct {
	limit rate.Limit
	now   func() time.Time

	mu     sync.Mutex
	byName map[string]*rate.Limiter
	swept  time.Time
}

func newLimiters(perSecond int, now func() time.Time) *limiters {
	return &limiters{limit: rate.Limit(perSecond), now: now, byName: map[string]*rate.Limiter{}, swept: now()}
}

func (l *limiters) allow(name string) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.swept) > sweepEvery {
		l.swept = now
		for n, b := range l.byName {
			if b.TokensAt(now) >= float64(b.Burst()) {
				delete(l.byName, n)
			}
		}
	}
	bucket := l.byName[name]
	if bucket == nil {
		bucket = rate.NewLimiter(l.limit, 2*int(l.limit))
		l.byName[name] = bucket
	}
	return bucket.AllowN(now, 1)
}
