package containerd

import (
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// The kernel counts how often it has killed for memory in a worker's group, and does
// not say whom. It may have been a child, without which the worker lived on until
// something else ended it. So the kills that workers outlive are remembered, and
// only one that is newer is what ended a worker.

// oomEvery is how often the counts are looked at: one small file for each worker. Who
// runs at the next look has outlived what was seen: what dies of it is gone by then.
const oomEvery = 5 * time.Second

// outlived are the kills for memory that workers have outlived, as far as this
// launcher has seen. Of one that ended before it could look twice, or while there was
// no launcher, nothing is known: there any kill counts as its end.
type outlived struct {
	mu sync.Mutex
	of map[worker.Serial]kills // only of those that had any
}

// kills are those in one group.
type kills struct {
	group    uint64 // of one run: the next has another
	seen     int    // at the last look
	outlived int
}

// note says that the worker ran after there had been so many kills before this look,
// and how many there are now.
func (o *outlived) note(serial worker.Serial, group uint64, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.of[serial]
	if before.group != group {
		before = kills{}
	}
	if o.of == nil {
		o.of = map[worker.Serial]kills{}
	}
	o.of[serial] = kills{group: group, seen: n, outlived: max(before.outlived, before.seen)}
}

// kills is how many the worker has outlived in its present run.
func (o *outlived) kills(serial worker.Serial, group uint64) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := o.of[serial]; k.group == group {
		return k.outlived
	}
	return 0
}

// forget leaves only what holds.
func (o *outlived) forget(holds func(serial worker.Serial, group uint64) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for serial, k := range o.of {
		if !holds(serial, k.group) {
			delete(o.of, serial)
		}
	}
}

// watchKills looks at the counts until the launcher is closed.
func (l *Launcher) watchKills() {
	ticker := time.NewTicker(oomEvery)
	defer ticker.Stop()
	l.lookAtKills() // twice at once: who runs as a host begins has outlived what was before it
	for {
		l.lookAtKills()
		select {
		case <-l.life.Done():
			return
		case <-ticker.C:
		}
	}
}

// lookAtKills looks at the count of every worker that runs.
func (l *Launcher) lookAtKills() {
	for _, serial := range l.cgroups.all() {
		if n, group := l.cgroups.oomKills(serial); n > 0 && len(l.cgroups.members(serial)) > 0 {
			l.outlived.note(serial, group, n)
		}
	}
	l.outlived.forget(func(serial worker.Serial, group uint64) bool {
		_, now := l.cgroups.oomKills(serial)
		return now == group
	})
}

// outlives says that the worker runs, in spite of all kills for memory up to now.
func (l *Launcher) outlives(serial worker.Serial) {
	if n, group := l.cgroups.oomKills(serial); n > 0 {
		l.outlived.note(serial, group, n)
		l.outlived.note(serial, group, n) // as who runs at a second look
	}
}

// oomKilled says of a worker that was killed whether that was for memory.
func (l *Launcher) oomKilled(serial worker.Serial) bool {
	n, group := l.cgroups.oomKills(serial)
	return n > l.outlived.kills(serial, group)
}
