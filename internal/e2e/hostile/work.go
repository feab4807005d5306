package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// allocate fills memory; where that is bounded, it does not come back.
func allocate(_ context.Context, in amount) (outcome, error) {
	held := bytes.Repeat([]byte{1}, in.N<<20)
	return outcome{string('0' + held[len(held)-1]%10)}, nil
}

// spin keeps 8 threads busy for so many milliseconds.
func spin(milliseconds int) {
	var all sync.WaitGroup
	end := time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	for range 8 {
		all.Go(func() {
			for time.Now().Before(end) { // deaf to its context: that is the attempt
			}
		})
	}
	all.Wait()
}

// burn spins and says whether it had more than a core, with a fifth for the
// kernel's rounding, of what its clock says has passed.
func burn(a []string) error {
	began, before := time.Now(), processorTime()
	spin(number(a[0]))
	if cores := float64(processorTime()-before) / float64(time.Since(began)); cores > 1.2 {
		return fmt.Errorf("%.1f cores", cores)
	}
	return fmt.Errorf("one core")
}

// processorTime is what this process has had.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
