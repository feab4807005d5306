package sdk

import (
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestTurns: who came first begins first; who leaves the queue is passed over; no
// more run than may; and none begins while there is no room for its result.
func TestTurns(t *testing.T) {
	t.Parallel()
	d := newDesk(&results{bounds: usualBounds()}, hclog.NewNullLogger())
	var all []*turn
	came := func() (n int) {
		for _, x := range all {
			select {
			case <-x.come:
				n++
			default:
			}
		}
		return n
	}
	leave := func(i int) {
		d.turns.leave(all[i])
		d.advance()
	}
	for range maxRunning + 4 {
		all = append(all, d.turns.take())
		d.advance()
	}
	if n := came(); n != maxRunning || all[maxRunning].began {
		t.Fatalf("%d have begun", n)
	}
	leave(maxRunning + 1) // while it waits: makes room for nobody
	if n := came(); n != maxRunning {
		t.Errorf("%d have begun after one has left the queue", n)
	}
	leave(7)
	leave(9)
	if !all[maxRunning].began || all[maxRunning+1].began || !all[maxRunning+2].began || all[maxRunning+3].began {
		t.Error("not the next two have begun")
	}
	d.results.bytes = usualBounds().keptBytes
	leave(11)
	if all[maxRunning+3].began {
		t.Error("a task has begun whose result has no room")
	}
	d.results.bytes--
	d.advance()
	if !all[maxRunning+3].began || d.turns.running != maxRunning || len(d.turns.waiting) != 0 {
		t.Errorf("at last %d run, %d wait", d.turns.running, len(d.turns.waiting))
	}
}
