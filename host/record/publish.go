package record

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/transparency-dev/tessera/api/layout"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

// Run publishes what is committed until ctx ends, and then returns nil. Errors
// of the disk are logged once and tried again; rows with gaps, or fewer than
// before, end it with a worker.ErrCorrupt.
func (l *Log) Run(ctx context.Context) error {
	failing := false
	for {
		err := l.catchUp(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, worker.ErrCorrupt):
			return fmt.Errorf("publish record: %w", err)
		case err != nil && !failing:
			l.logger.Error("cannot publish the record", "error", err)
		case err == nil && failing:
			l.logger.Info("publishes the record again")
		}
		failing = err != nil
		if !l.rest(ctx, failing) {
			return nil
		}
	}
}

// rest waits for the next reason to publish: a commit, but not at once after
// the last checkpoint; or, after an error, time. False when ctx has ended.
func (l *Log) rest(ctx context.Context, failing bool) bool {
	pause := l.pause
	if failing {
		pause = l.retry
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	if failing {
		return true
	}
	select {
	case <-l.source.Committed():
		return true
	case <-ctx.Done():
		return false
	}
}

// catchUp publishes batches until the checkpoint covers what was committed when
// it began.
func (l *Log) catchUp(ctx context.Context) error {
	size, err := l.source.Size(ctx)
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	l.mu.Lock()
	published := l.size
	l.seen = max(size, published)
	l.mu.Unlock()
	if size < l.tree.size() {
		return l.distrust(fmt.Errorf("%d entries were published, the registry has %d", l.tree.size(), size))
	}
	for published < size {
		// What an earlier attempt took in and could not write goes first.
		if l.tree.size() == published {
			if err := l.take(ctx, size); err != nil {
				return err
			}
		}
		if err := l.publish(ctx); err != nil {
			return err
		}
		published = l.tree.size()
	}
	l.setWaiting(time.Time{})
	return nil
}

// take adds a batch of rows to the tree; the tiles they fill become pending.
func (l *Log) take(ctx context.Context, size uint64) error {
	from, taken := l.tree.size(), 0
	to := min(size, from+batchEntries)
	for r, err := range rows(ctx, l.source, from, to) {
		if err == nil && r.index == from {
			l.setWaiting(r.at)
		}
		if err == nil {
			err = l.tree.append(r.data, func(f file) { l.pending = append(l.pending, f) })
		}
		if err != nil {
			return err
		}
		if taken += len(r.data); taken >= batchBytes {
			break
		}
	}
	return nil
}

// publish writes the tree's files, then its checkpoint, then removes the
// partial tiles that the larger ones have replaced.
func (l *Log) publish(ctx context.Context) error {
	unlock, err := l.dir.lock(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	_, before := l.Checkpoint()
	if err := l.dir.write(append(l.pending, l.tree.partial()...)...); err != nil {
		return err
	}
	l.pending = nil
	if err := l.publishCheckpoint(); err != nil {
		return err
	}
	l.stale = append(l.stale, superseded(before, l.tree.size())...)
	return l.removeStale()
}

// publishCheckpoint signs the tree and puts its checkpoint in place.
func (l *Log) publishCheckpoint() error {
	signed, err := sign(l.tree, l.signer)
	if err != nil {
		return err
	}
	failpoint.Hit("record", "checkpoint", "before")
	if err := l.dir.write(file{layout.CheckpointPath, signed}); err != nil {
		return err
	}
	failpoint.Hit("record", "checkpoint", "after")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signed, l.size = signed, l.tree.size()
	l.seen = max(l.seen, l.size)
	close(l.replaced)
	l.replaced = make(chan struct{})
	return nil
}

func (l *Log) removeStale() error {
	for len(l.stale) > 0 {
		failpoint.Hit("record", "remove", "before")
		if err := l.dir.remove(l.stale[0].path()); err != nil {
			return err
		}
		failpoint.Hit("record", "remove", "after")
		l.stale = l.stale[1:]
	}
	return nil
}

// superseded are the partial tiles that the tree of size before has and the one
// of size now does not.
func superseded(before, now uint64) []tilePlace {
	edge := []tilePlace{{entries: true, index: before / layout.TileWidth, width: before % layout.TileWidth}}
	for level := uint64(0); before>>(level*layout.TileHeight) > 0; level++ {
		n := before >> (level * layout.TileHeight)
		edge = append(edge, tilePlace{level: level, index: n / layout.TileWidth, width: n % layout.TileWidth})
	}
	return slices.DeleteFunc(edge, func(p tilePlace) bool { return p.width == 0 || p.of(now) })
}

func (l *Log) setWaiting(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = t
}
