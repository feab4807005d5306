package sdk

import "time"

// bounds are what a worker allows itself and others.
type bounds struct {
	// recheck is the least time between two looks at a worker's files.
	recheck time.Duration
	// rest is how long a worker has had no task when it gives memory back.
	rest time.Duration
	// A worker that shall end lets tasks finish within grace, and asks them to
	// after askAfter.
	askAfter, grace time.Duration
	// How much the kept results of one worker may be. All that is in flight has
	// its place among them, and so have those that the host has and whose receipts
	// are on their way. Beyond the bytes no task begins; what runs then may still
	// come on top, up to maxRunning results.
	kept      int
	keptBytes int64
}

func usualBounds() bounds {
	return bounds{
		recheck:  10 * time.Second,
		rest:     30 * time.Second,
		askAfter: 4 * time.Second, grace: 5 * time.Second,
		kept: 2 * maxInFlight, keptBytes: 64 << 20,
	}
}
