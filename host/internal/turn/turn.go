// Package turn lets one caller at a time work on each of many keys. Waiting for
// a turn ends with the caller's context. It holds no memory for idle keys.
package turn

import (
	"context"
	"sync"
)

// Keys is a set of locks by name. The zero value is ready; it is safe for
// concurrent use and must not be copied.
type Keys[K comparable] struct {
	mu    sync.Mutex
	turns map[K]*queue
}

type queue struct {
	token chan struct{} // full while somebody has the turn
	users int           // who has the turn or waits for it; guarded by Keys.mu
}

// Take waits for key's turn and returns how to give it back, or ctx's error.
func (k *Keys[K]) Take(ctx context.Context, key K) (done func(), err error) {
	q := k.join(key)
	select {
	case q.token <- struct{}{}:
		return func() { <-q.token; k.leave(key, q) }, nil
	case <-ctx.Done():
		k.leave(key, q)
		return nil, ctx.Err()
	}
}

// TryTake takes key's turn if nobody has it.
func (k *Keys[K]) TryTake(key K) (done func(), ok bool) {
	q := k.join(key)
	select {
	case q.token <- struct{}{}:
		return func() { <-q.token; k.leave(key, q) }, true
	default:
		k.leave(key, q)
		return nil, false
	}
}

func (k *Keys[K]) join(key K) *queue {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.turns == nil {
		k.turns = make(map[K]*queue)
	}
	q := k.turns[key]
	if q == nil {
		q = &queue{token: make(chan struct{}, 1)}
		k.turns[key] = q
	}
	q.users++
	return q
}

func (k *Keys[K]) leave(key K, q *queue) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(k.turns, key)
	}
}
