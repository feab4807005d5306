package record

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// Group is one commit group: entries that became durable together.
type Group struct {
	First   uint64 // index of the first entry
	At      time.Time
	Entries [][]byte
}

// Source is where the entries are: the registry.
type Source interface {
	// Groups yields the groups that hold the entries from an index on, in order
	// and without gaps, as they were at the call or later. The first group may
	// begin before that index.
	Groups(ctx context.Context, from uint64) iter.Seq2[Group, error]
	// Size is the number of committed entries.
	Size(ctx context.Context) (uint64, error)
	// Committed receives, coalesced, after commits that appended entries.
	Committed() <-chan struct{}
}

// row is one entry with its place.
type row struct {
	index uint64
	at    time.Time
	data  []byte
}

// rows yields the entries of [from, to) one by one. A gap between groups, or
// too few rows, is a worker.ErrCorrupt.
func rows(ctx context.Context, s Source, from, to uint64) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		next := from
		if next >= to {
			return
		}
		for g, err := range s.Groups(ctx, from) {
			if err != nil {
				yield(row{}, fmt.Errorf("read entries from %d: %w", next, err))
				return
			}
			if g.First > next || g.First+uint64(len(g.Entries)) <= next {
				yield(row{}, fmt.Errorf("read entries: group of %d at %d where entry %d is due: %w",
					len(g.Entries), g.First, next, worker.ErrCorrupt))
				return
			}
			for _, data := range g.Entries[next-g.First:] {
				if next == to {
					return
				}
				if !yield(row{next, g.At, data}, nil) {
					return
				}
				next++
			}
			if next == to {
				return
			}
		}
		if next < to {
			yield(row{}, fmt.Errorf("read entries: the rows end at %d, want %d: %w", next, to, worker.ErrCorrupt))
		}
	}
}
