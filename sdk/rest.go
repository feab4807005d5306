package sdk

import (
	"time"

	"github.com/dals-host/dals-host/sdk/idle"
)

// rest gives the machine the memory that the worker does not need, again and again
// while it has no task: many idle workers share a machine, Go keeps what each has once
// used, and signs of life use some.
func (r *runner) rest() {
	ticker := time.NewTicker(r.typ.bounds.rest)
	defer ticker.Stop()
	for before := uint64(0); ; {
		select {
		case <-ticker.C:
		case <-r.stopped:
			return
		}
		inFlight, done, failed := r.desk.counts()
		if finished := done + failed; inFlight == 0 && finished == before {
			idle.GiveBack()
		} else {
			before = finished
		}
	}
}
