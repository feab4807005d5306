package turn

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestOneAtATimePerKey(t *testing.T) {
	t.Parallel()
	var keys Keys[string]
	var wg sync.WaitGroup
	count := map[string]*int{"a": new(int), "b": new(int)}
	for range 50 {
		for key, n := range count {
			wg.Go(func() {
				done, err := keys.Take(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				*n++ // the race detector watches
				done()
			})
		}
	}
	wg.Wait()
	if *count["a"] != 50 || *count["b"] != 50 {
		t.Fatalf("counted %d and %d", *count["a"], *count["b"])
	}
	if len(keys.turns) != 0 {
		t.Fatalf("%d idle keys are kept", len(keys.turns))
	}
}

func TestTakeEndsWithContext(t *testing.T) {
	t.Parallel()
	var keys Keys[int]
	done, err := keys.Take(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keys.Take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("took a taken turn: %v", err)
	}
	done()
	if done, err = keys.Take(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	done()
}

func TestTryTake(t *testing.T) {
	t.Parallel()
	var keys Keys[int]
	done, ok := keys.TryTake(1)
	if !ok {
		t.Fatal("nobody had the turn")
	}
	if _, ok := keys.TryTake(1); ok {
		t.Fatal("took a taken turn")
	}
	if other, ok := keys.TryTake(2); !ok {
		t.Error("another key's turn was taken")
	} else {
		other()
	}
	done()
	if done, ok = keys.TryTake(1); !ok {
		t.Fatal("the turn was given back")
	}
	done()
	if len(keys.turns) != 0 {
		t.Fatalf("%d idle keys are kept", len(keys.turns))
	}
}
