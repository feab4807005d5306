package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dals-host/dals-host/sdk"
)

// verify computes the tree anew from the records on disk, by other code than
// the log's own, and compares. It stops when ctx ends.
func (l *merkleLog) verify(ctx context.Context) (size int64, root tlog.Hash, err error) {
	now := l.state()
	if root, err = tlog.TreeHash(now.size, l.index); err != nil {
		return 0, root, fmt.Errorf("hash tree: %w", err)
	}
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	tree := factory.NewEmptyRange(0)
	batches := newBatchReader(l.records, now.end)
	for err == nil {
		err = batches.next(func(_ int64, record []byte) error {
			return errors.Join(ctx.Err(), l.verifyRecord(tree, record))
		})
	}
	switch {
	case ctx.Err() != nil:
		return 0, root, ctx.Err()
	case !errors.Is(err, io.EOF):
		return 0, root, sdk.Errorf("corrupt", "verify: %w", err)
	case int64(tree.End()) != now.size:
		return 0, root, sdk.Errorf("corrupt", "verify: %d records on disk, %d in the log", tree.End(), now.size)
	}
	computed, err := tree.GetRootHash(nil)
	if err != nil {
		return 0, root, fmt.Errorf("hash tree: %w", err)
	}
	if now.size > 0 && !bytes.Equal(computed, root[:]) {
		return 0, root, sdk.Errorf("corrupt", "verify: the records do not give the root of the log")
	}
	return now.size, root, nil
}

// verifyRecord compares the next record with its hash in the index.
func (l *merkleLog) verifyRecord(tree *compact.Range, record []byte) error {
	n := int64(tree.End())
	stored, err := l.index.ReadHashes([]int64{tlog.StoredHashIndex(0, n)})
	if err != nil {
		return err
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(record)
	if !bytes.Equal(leaf, stored[0][:]) {
		return fmt.Errorf("record %d is not what was appended", n)
	}
	return tree.Append(leaf, nil)
}
