package supervise

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

// timing is how patient a supervisor is.
type timing struct {
	first, most time.Duration // the pauses before restarts: the first, and what they double up to
	healthy     time.Duration // how long a worker has to live to be as good as new
	restarts    int           // how often it is started again before that
	pause       time.Duration // between tries of what depends on others than the worker
}

func defaultTiming() timing {
	return timing{first: 10 * time.Second, most: 5 * time.Minute, healthy: 10 * time.Minute, restarts: 10, pause: time.Second}
}

// jitter is the part of a pause by which it is longer or shorter at random, so
// that workers that died together do not start together.
const jitter = 0.2

// pace spaces the restarts of one worker. It is for its keeping's goroutine
// alone.
type pace struct {
	timing
	backOff *backoff.ExponentialBackOff
	begun   bool // a restart was tried since the worker was healthy
	count   int  // of the restarts since then
}

// newPace goes on after so many restarts, also those of an earlier host.
func newPace(t timing, tries int) *pace {
	b := &backoff.ExponentialBackOff{
		InitialInterval: t.first, RandomizationFactor: jitter, Multiplier: 2, MaxInterval: t.most,
	}
	b.Reset()
	p := &pace{timing: t, backOff: b, count: tries}
	for range min(tries, t.restarts) {
		p.delay()
	}
	return p
}

// lived takes note of how long the worker ran before it ended.
func (p *pace) lived(d time.Duration) {
	if d >= p.healthy {
		p.backOff.Reset()
		p.begun, p.count = false, 0
	}
}

// delay is how long the restart that comes next has to wait.
func (p *pace) delay() time.Duration {
	if !p.begun {
		p.begun = true
		return 0
	}
	return p.backOff.NextBackOff()
}
