package sdk

import "slices"

// turns lets so many tasks run at once; the others wait, in the order in which
// they came. The desk's lock guards it.
type turns struct {
	running int
	waiting []*turn
}

// turn is one task's. Whoever takes one gives it back by leave.
type turn struct {
	come  chan struct{} // closed when the task may run
	began bool
}

// take queues up.
func (t *turns) take() *turn {
	mine := &turn{come: make(chan struct{})}
	t.waiting = append(t.waiting, mine)
	return mine
}

// leave ends a turn, whether it has come or not.
func (t *turns) leave(x *turn) {
	if x.began {
		t.running--
		return
	}
	t.waiting = slices.DeleteFunc(t.waiting, func(w *turn) bool { return w == x })
}

// advance calls up who is next, as long as there is room for more.
func (t *turns) advance() {
	for len(t.waiting) > 0 && t.running < maxRunning {
		next := t.waiting[0]
		t.waiting[0] = nil
		t.waiting = t.waiting[1:]
		t.running++
		next.began = true
		close(next.come)
	}
}
