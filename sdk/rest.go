package sdk

import (
	"runtime/debug"
	"time"
)

// rest gives the machine the memory that the worker does not need once it has had
// no task for a while: many idle workers share a machine, and Go keeps what each
// has once used.
func (r *runner) rest() {
	ticker := time.NewTicker(r.typ.bounds.rest)
	defer ticker.Stop()
	before, resting := uint64(0), false
	for {
		select {
		case <-ticker.C:
		case <-r.stopped:
			return
		}
		inFlight, done, failed := r.desk.counts()
		switch finished := done + failed; {
		case inFlight > 0 || finished != before:
			before, resting = finished, false
		case !resting:
			debug.FreeOSMemory()
			resting = true
		}
	}
}
