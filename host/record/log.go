package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

const (
	// interval is the least time between two checkpoints. A lone commit is
	// published at once; under load the disk is left to the committer: each
	// checkpoint makes and deletes about ten files.
	interval = 200 * time.Millisecond
	// retryAfter is how long Run waits after an error of the disk.
	retryAfter = time.Second
	// batchEntries and batchBytes bound what one checkpoint adds, so that a long
	// way to catch up shows progress and needs little memory.
	batchEntries = 16 << 10
	batchBytes   = 16 << 20
)

// Config is what a Log needs.
type Config struct {
	Dir    string      // the folder of the log's files; made when missing
	Signer note.Signer // Ed25519; its name is the log's origin
	Source Source
	// Published says that Open has succeeded on this log before: then a
	// checkpoint that is missing was taken away, and is not made anew.
	Published bool
	Logger    hclog.Logger
}

// Log publishes the entries of its source. Its methods may be called
// concurrently; Run once.
type Log struct {
	dir    folder
	signer note.Signer
	source Source
	logger hclog.Logger
	pause  time.Duration // between two checkpoints: interval
	retry  time.Duration // after an error: retryAfter

	// Only Open and Run touch these.
	tree    *tree       // what is on disk, and pending
	pending []file      // full tiles not yet on disk
	stale   []tilePlace // partial tiles that larger ones have replaced

	mu       sync.Mutex
	signed   []byte        // the published checkpoint
	size     uint64        // what it covers
	seen     uint64        // entries known to be committed
	waiting  time.Time     // commit time of the oldest entry on its way, or zero
	replaced chan struct{} // closed when signed is replaced
}

// Open checks the checkpoint on disk against the rows, or makes the one of the
// empty tree, and tidies what a crash left. It reads all rows that the
// checkpoint covers. Rows that do not support it, and a published checkpoint that
// is gone, are a worker.ErrCorrupt.
func Open(ctx context.Context, c Config) (*Log, error) {
	l := &Log{
		dir: folder(c.Dir), signer: c.Signer, source: c.Source, logger: c.Logger,
		pause: interval, retry: retryAfter, tree: newTree(), replaced: make(chan struct{}),
	}
	if err := l.dir.prepare(); err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	unlock, err := l.dir.lock(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	defer unlock()
	if err := l.resume(ctx, c.Published); err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	return l, nil
}

func (l *Log) resume(ctx context.Context, published bool) error {
	onDisk, err := os.ReadFile(l.dir.path(layout.CheckpointPath))
	switch {
	case errors.Is(err, fs.ErrNotExist) && published:
		err = l.distrust(errors.New("the checkpoint is gone"))
	case errors.Is(err, fs.ErrNotExist):
		// A view without a checkpoint is no view yet: it is made from the rows.
		err = l.publishCheckpoint()
	case err == nil:
		err = l.rebuild(ctx, onDisk)
	}
	if err != nil {
		return err
	}
	return l.sweep()
}

// rebuild computes the tree that onDisk claims from the rows.
func (l *Log) rebuild(ctx context.Context, onDisk []byte) error {
	c, err := claims(onDisk)
	if err != nil {
		return l.distrust(err)
	}
	have, err := l.source.Size(ctx)
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	if c.Size > have {
		return l.distrust(fmt.Errorf("checkpoint covers %d entries, the registry has %d", c.Size, have))
	}
	for r, err := range rows(ctx, l.source, 0, c.Size) {
		if err == nil {
			err = l.tree.append(r.data, func(file) {})
		}
		if err != nil {
			return err
		}
	}
	ours, err := sign(l.tree, l.signer)
	if err != nil {
		return err
	}
	if !bytes.Equal(ours, onDisk) {
		return l.distrust(l.differs(c.Origin, c.Hash))
	}
	l.signed, l.size, l.seen = ours, c.Size, have
	return nil
}

// differs says in what the checkpoint on disk is not the one of the rows.
func (l *Log) differs(origin string, hash []byte) error {
	root, err := l.tree.root()
	switch {
	case err != nil:
		return err
	case origin != l.signer.Name():
		return fmt.Errorf("checkpoint is of the log %.80q, this is %q", origin, l.signer.Name())
	case !bytes.Equal(root, hash):
		return fmt.Errorf("checkpoint has root %x over %d entries, the registry's rows have %x", hash, l.tree.size(), root)
	default:
		return errors.New("checkpoint is not signed by this host's key")
	}
}

// distrust makes err the refusal to go on from the checkpoint on disk.
func (l *Log) distrust(err error) error {
	return worker.Hint(fmt.Errorf("%w: %w", worker.ErrCorrupt, err),
		"the registry was rolled back, or the log changed: run dals-host vault verify, then dals-host recover or restore")
}

// sweep removes tiles that a crash left beside those of the checkpoint. Other
// files are left for Verify to name.
func (l *Log) sweep() error {
	found, err := l.dir.files()
	if err != nil {
		return err
	}
	for name := range found {
		if p, ok := parseTile(name); ok && !p.of(l.size) {
			if err := l.dir.remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Checkpoint is the last published checkpoint, a signed note, and its size.
func (l *Log) Checkpoint() (signed []byte, size uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.signed), l.size
}

// WaitFor returns once the published checkpoint covers the entry at index.
func (l *Log) WaitFor(ctx context.Context, index uint64) error {
	for {
		l.mu.Lock()
		size, replaced := l.size, l.replaced
		l.mu.Unlock()
		if size > index {
			return nil
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return fmt.Errorf("wait for entry %d to be published: %w", index, context.Cause(ctx))
		}
	}
}

// Lag says how far the published checkpoint is behind what Run knows to be
// committed: how many entries, and the age of the oldest of them.
func (l *Log) Lag() (entries uint64, age time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting.IsZero() {
		return l.seen - l.size, 0
	}
	return l.seen - l.size, time.Since(l.waiting)
}
