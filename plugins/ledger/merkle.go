package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dals-host/dals-host/sdk"
)

// merkleLog is an append-only log of records and the Merkle tree over them (RFC
// 6962, as golang.org/x/mod/sumdb/tlog computes it). One process has it open.
// One append runs at a time; reads see the last whole one, and never wait for
// a long one.
type merkleLog struct {
	records *os.File
	index   *index

	appending sync.Mutex // held by the one that appends
	broken    error      // why nothing more may be appended before a restart

	mu  sync.Mutex
	now state
}

// state is how far the log has got.
type state struct {
	size int64 // records
	end  int64 // bytes of the records file
}

func (l *merkleLog) state() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// append adds records, all or none: when it returns they are on disk. It says
// the index of the first, and what the log is with them.
func (l *merkleLog) append(records []string) (first, size int64, root tlog.Hash, err error) {
	batch, err := encodeBatch(records)
	if err != nil {
		return 0, 0, root, err
	}
	l.appending.Lock()
	defer l.appending.Unlock()
	if l.broken != nil {
		return 0, 0, root, sdk.Errorf("broken", "append: an earlier one went wrong: %w", l.broken)
	}
	before := l.state()
	after := state{size: before.size + int64(len(records)), end: before.end + int64(len(batch))}
	if err := l.write(batch, before.end); err != nil {
		return 0, 0, root, err
	}
	if err := l.extendIndex(batch, before.end); err != nil {
		l.broken = err
		return 0, 0, root, err
	}
	if root, err = tlog.TreeHash(after.size, l.index); err != nil {
		l.broken = err
		return 0, 0, root, fmt.Errorf("hash tree: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = after
	return before.size, after.size, root, nil
}

// write puts a batch on disk. A disk that is full is as it was before; after any
// other fault only a restart can tell what it holds.
func (l *merkleLog) write(batch []byte, at int64) error {
	if _, err := l.records.WriteAt(batch, at); err != nil {
		l.broken = l.records.Truncate(at)
		return fmt.Errorf("write records: %w", errors.Join(err, l.broken))
	}
	if err := l.records.Sync(); err != nil {
		l.broken = fmt.Errorf("sync records: %w", err)
		return l.broken
	}
	return nil
}

// extendIndex reads the batch as load will.
func (l *merkleLog) extendIndex(batch []byte, at int64) error {
	written := newBatchReader(bytes.NewReader(batch), int64(len(batch)))
	err := written.next(func(place int64, record []byte) error {
		return l.index.add(at+place, record)
	})
	return errors.Join(err, l.index.flush())
}

// record reads record n.
func (l *merkleLog) record(n int64) ([]byte, error) {
	if size := l.state().size; n < 0 || n >= size {
		return nil, sdk.Errorf("no_such_record", "read record %d: the log has %d", n, size)
	}
	at, length, err := l.index.place(n)
	if err != nil {
		return nil, err
	}
	record := make([]byte, length)
	if _, err := l.records.ReadAt(record, at); err != nil {
		return nil, fmt.Errorf("read record %d: %w", n, err)
	}
	return record, nil
}

// inclusion proves that a record is in the log of a size and root.
type inclusion struct {
	record []byte
	leaf   tlog.Hash
	path   tlog.RecordProof
	size   int64
	root   tlog.Hash
}

func (l *merkleLog) prove(n int64) (inclusion, error) {
	size := l.state().size
	record, err := l.record(n)
	if err != nil {
		return inclusion{}, err
	}
	p := inclusion{record: record, leaf: tlog.RecordHash(record), size: size}
	if p.path, err = tlog.ProveRecord(size, n, l.index); err != nil {
		return inclusion{}, fmt.Errorf("prove record %d: %w", n, err)
	}
	if p.root, err = tlog.TreeHash(size, l.index); err != nil {
		return inclusion{}, fmt.Errorf("hash tree: %w", err)
	}
	if err := tlog.CheckRecord(p.path, size, p.root, n, p.leaf); err != nil {
		return inclusion{}, sdk.Errorf("corrupt", "prove record %d: it is not what was appended: %w", n, err)
	}
	return p, nil
}

// extension proves that the log of a size and root begins with an earlier one.
type extension struct {
	path tlog.TreeProof
	size int64
	root tlog.Hash
}

func (l *merkleLog) extend(since int64) (extension, error) {
	e := extension{size: l.state().size}
	if since < 0 || since > e.size {
		return extension{}, sdk.Errorf("no_such_size", "extend size %d: the log has %d", since, e.size)
	}
	var err error
	if e.root, err = tlog.TreeHash(e.size, l.index); err != nil {
		return extension{}, fmt.Errorf("hash tree: %w", err)
	}
	if since == 0 {
		return e, nil // every log begins with the empty one
	}
	if e.path, err = tlog.ProveTree(e.size, since, l.index); err != nil {
		return extension{}, fmt.Errorf("prove tree: %w", err)
	}
	return e, nil
}
