package record

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

// Support says whether a source's rows begin with just the entries that a
// checkpoint covers.
type Support struct {
	Size uint64 // that the checkpoint covers; 0 where it does not verify
	// Err is nil where they do. A checkpoint that does not verify is a
	// worker.ErrInvalid; rows that are other, or fewer, are a worker.ErrCorrupt.
	Err error

	root []byte
}

// Supports says of one checkpoint what SupportEach says of many.
func Supports(ctx context.Context, s Source, verifier note.Verifier, signed []byte) (size uint64, err error) {
	each, err := SupportEach(ctx, s, verifier, [][]byte{signed})
	if err != nil {
		return 0, err
	}
	return each[0].Size, each[0].Err
}

// SupportEach compares the rows of a source with checkpoints, in their order and
// in one pass. The error is about rows that cannot be read.
func SupportEach(ctx context.Context, s Source, verifier note.Verifier, signed [][]byte) ([]Support, error) {
	have, err := s.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("read size: %w", err)
	}
	each, bySize, last := make([]Support, len(signed)), map[uint64][]*Support{}, uint64(0)
	for i := range signed {
		c, err := open(signed[i], verifier)
		if err != nil {
			each[i].Err = fmt.Errorf("%w: %w", worker.ErrInvalid, err)
			continue
		}
		each[i].Size, each[i].root = c.Size, c.Hash
		if c.Size > have {
			each[i].Err = fmt.Errorf("the checkpoint covers %d entries, the registry has %d: %w", c.Size, have, worker.ErrCorrupt)
			continue
		}
		bySize[c.Size] = append(bySize[c.Size], &each[i])
		last = max(last, c.Size)
	}
	t := newTree()
	if err := t.support(bySize[0]); err != nil {
		return nil, err
	}
	for r, err := range rows(ctx, s, 0, last) {
		if err == nil {
			err = t.append(r.data, func(file) {})
		}
		if err == nil {
			err = t.support(bySize[r.index+1])
		}
		if err != nil {
			return nil, err
		}
	}
	return each, nil
}

// support compares the tree with the checkpoints of its size.
func (t *tree) support(each []*Support) error {
	if len(each) == 0 {
		return nil
	}
	root, err := t.root()
	if err != nil {
		return err
	}
	for _, c := range each {
		if !bytes.Equal(root, c.root) {
			c.Err = fmt.Errorf("the first %d entries of the registry are not those of the checkpoint: %w", c.Size, worker.ErrCorrupt)
		}
	}
	return nil
}
