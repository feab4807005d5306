package main

import (
	"bytes"
	"context"
	"sync"
	"time"
)

// allocate fills memory; where that is bounded, it does not come back.
func allocate(_ context.Context, in amount) (outcome, error) {
	held := bytes.Repeat([]byte{1}, in.N<<20)
	return outcome{string('0' + held[len(held)-1]%10)}, nil
}

func spin(_ context.Context, in amount) (outcome, error) {
	var all sync.WaitGroup
	end := time.Now().Add(time.Duration(in.N) * time.Millisecond)
	for range 8 {
		all.Go(func() {
			for time.Now().Before(end) { // deaf to its context: that is the attempt
			}
		})
	}
	all.Wait()
	return outcome{"ok"}, nil
}
