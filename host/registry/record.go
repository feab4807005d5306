package registry

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// MaxEntry is the size of the largest entry, in bytes: an entry bundle of
// tlog-tiles gives its length in 16 bits.
const MaxEntry = math.MaxUint16

// Group is the entries that one commit made durable together.
type Group struct {
	First   uint64    // the index of the first entry
	At      time.Time // when the group was committed, by the host's clock
	Entries [][]byte
}

// batch is the entries of the group that is being put together.
type batch struct {
	first, count uint64
	blob         []byte
	at           time.Time // of entries of the past; zero stands for now
}

// next is the index that the next entry gets.
func (b *batch) next() uint64 { return b.first + b.count }

func (b *batch) store(ctx context.Context, q *sqlcgen.Queries) error {
	if b.count == 0 {
		return nil
	}
	at := b.at
	if at.IsZero() {
		at = time.Now()
	}
	return fault(q.InsertGroup(ctx, sqlcgen.InsertGroupParams{
		FirstIndex: int64(b.first), Count: int64(b.count), At: millis(at), Blob: b.blob,
	}))
}

// Append adds an entry to the log in this transaction and returns its index.
// An entry of more than MaxEntry bytes, or of none, is worker.ErrInvalid.
func (tx *Tx) Append(entry []byte) (index uint64, err error) {
	err = tx.do("append entry", func() error {
		if len(entry) == 0 || len(entry) > MaxEntry {
			return fmt.Errorf("%d bytes, want 1 to %d: %w", len(entry), MaxEntry, worker.ErrInvalid)
		}
		index = tx.batch.next()
		tx.batch.blob = append(binary.AppendUvarint(tx.batch.blob, uint64(len(entry))), entry...)
		tx.batch.count++
		return nil
	})
	return index, err
}

// Size is the number of committed entries.
func (r *Registry) Size(ctx context.Context) (uint64, error) {
	if r.committer != nil {
		return r.committer.size.Load(), nil
	}
	return size(ctx, r.read)
}

func size(ctx context.Context, q *sqlcgen.Queries) (uint64, error) {
	last, err := q.LastGroup(ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read size of the log: %w", fault(err))
	}
	return uint64(last.FirstIndex + last.Count), nil
}

// Groups yields the log from entry from on, group by group, up to the newest at
// the time it gets there; the first group may begin before from. It holds no
// transaction between groups. A gap or a damaged group is worker.ErrCorrupt; an
// error ends the sequence.
func (r *Registry) Groups(ctx context.Context, from uint64) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		start, err := r.read.GroupStart(ctx, int64(min(from, math.MaxInt64)))
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			yield(Group{}, fmt.Errorf("find entry %d: %w", from, fault(err)))
			return
		}
		for g, err := range r.groups(ctx, start) {
			if err == nil && g.First+uint64(len(g.Entries)) <= from {
				continue
			}
			if !yield(g, err) {
				return
			}
		}
	}
}

// GroupsSince yields, as Groups does, the groups that were committed at or after
// a time by the host's clock.
func (r *Registry) GroupsSince(ctx context.Context, at time.Time) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		start, err := r.read.GroupStartSince(ctx, millis(at))
		if err != nil {
			yield(Group{}, fmt.Errorf("find entries since %s: %w", at, fault(err)))
			return
		}
		if start < 0 {
			return
		}
		for g, err := range r.groups(ctx, start) {
			if err == nil && millis(g.At) < millis(at) { // the clock was set back
				continue
			}
			if !yield(g, err) {
				return
			}
		}
	}
}

// NewestBefore is the latest time before at, by the host's clock, at which entries
// were committed; the zero time when there was none.
func (r *Registry) NewestBefore(ctx context.Context, at time.Time) (time.Time, error) {
	newest, err := r.read.NewestBefore(ctx, millis(at))
	if err != nil {
		return time.Time{}, fmt.Errorf("find entries before %s: %w", at, fault(err))
	}
	return instant(newest), nil
}

// groups yields the groups from the one that begins at next.
func (r *Registry) groups(ctx context.Context, next int64) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		for {
			row, err := r.read.GroupFrom(ctx, next)
			if errors.Is(err, sql.ErrNoRows) {
				return
			}
			var entries [][]byte
			switch {
			case err != nil:
				err = fault(err)
			case row.FirstIndex != next:
				err = corrupt(fmt.Errorf("entries %d to %d are missing", next, row.FirstIndex-1))
			default:
				entries, err = split(row.Blob, row.Count)
			}
			if err != nil {
				yield(Group{}, fmt.Errorf("read entries from %d: %w", next, err))
				return
			}
			if !yield(Group{First: uint64(next), At: instant(row.At), Entries: entries}, nil) {
				return
			}
			next += row.Count
		}
	}
}

// split takes a group's blob apart.
func split(blob []byte, count int64) ([][]byte, error) {
	var entries [][]byte
	for len(blob) > 0 {
		size, n := binary.Uvarint(blob)
		if n <= 0 || size == 0 || size > MaxEntry || size > uint64(len(blob)-n) {
			return nil, corrupt(fmt.Errorf("entry %d of the group has no sound length", len(entries)))
		}
		end := n + int(size)
		entries = append(entries, blob[n:end:end])
		blob = blob[end:]
	}
	if int64(len(entries)) != count {
		return nil, corrupt(fmt.Errorf("group has %d entries, want %d", len(entries), count))
	}
	return entries, nil
}
