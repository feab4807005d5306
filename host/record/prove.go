package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

// Proof says that one entry is in the log. It can be checked with the log's
// public key alone.
type Proof struct {
	Index         uint64   `json:"index"`
	Entry         string   `json:"entry"`     // the entry's bytes, a line of JSON
	LeafHash      []byte   `json:"leaf_hash"` // RFC 6962: SHA-256 over 0x00 and the entry
	TreeSize      uint64   `json:"tree_size"`
	InclusionPath [][]byte `json:"inclusion_path"` // RFC 6962, from the leaf up
	Checkpoint    string   `json:"checkpoint"`     // the signed note
}

// Prove makes the proof of the entry at index under the published checkpoint,
// which it does not verify: see Proof.Check. No such entry is a
// worker.ErrNotFound, one not yet published a worker.ErrUnavailable, tiles that
// do not support the checkpoint a worker.ErrCorrupt.
func Prove(ctx context.Context, dir string, s Source, index uint64) (Proof, error) {
	p, err := prove(ctx, folder(dir), s, index)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	return p, nil
}

func prove(ctx context.Context, d folder, s Source, index uint64) (Proof, error) {
	unlock, err := d.lock(ctx, false)
	if err != nil {
		return Proof{}, err
	}
	defer unlock()
	signed, c, err := d.checkpoint()
	if err != nil {
		return Proof{}, err
	}
	if index >= c.Size {
		return Proof{}, notPublished(ctx, s, index)
	}
	nodes, err := proof.Inclusion(index, c.Size)
	if err != nil {
		return Proof{}, err
	}
	p := Proof{Index: index, TreeSize: c.Size, Checkpoint: string(signed)}
	if p.InclusionPath, err = d.hashes(nodes, c.Size); err != nil {
		return Proof{}, err
	}
	for r, err := range rows(ctx, s, index, index+1) {
		if err != nil {
			return Proof{}, err
		}
		p.Entry, p.LeafHash = string(r.data), rfc6962.DefaultHasher.HashLeaf(r.data)
	}
	if err := p.included(c.Hash); err != nil {
		return Proof{}, changed(err)
	}
	return p, nil
}

func notPublished(ctx context.Context, s Source, index uint64) error {
	size, err := s.Size(ctx)
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	if index < size {
		return worker.Hint(fmt.Errorf("not published yet: %w", worker.ErrUnavailable), "try again in a moment; a stopped host publishes when it starts")
	}
	return fmt.Errorf("the record has %d entries: %w", size, worker.ErrNotFound)
}

// changed makes err the finding that files of the log are not what was signed.
func changed(err error) error {
	return worker.Hint(fmt.Errorf("%w: %w", worker.ErrCorrupt, err), "run dals-host vault verify: it names what was changed")
}

func (p Proof) included(root []byte) error {
	return proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, p.TreeSize, p.LeafHash, p.InclusionPath, root)
}

// Check says whether the proof holds under the log's key: its checkpoint is
// signed and the entry is in the tree that it names. Otherwise the error is a
// worker.ErrInvalid.
func (p Proof) Check(verifier note.Verifier) error {
	c, err := open([]byte(p.Checkpoint), verifier)
	switch {
	case err != nil:
	case c.Size != p.TreeSize:
		err = fmt.Errorf("the checkpoint is of %d entries, the proof of %d", c.Size, p.TreeSize)
	case !bytes.Equal(rfc6962.DefaultHasher.HashLeaf([]byte(p.Entry)), p.LeafHash):
		err = errors.New("the leaf hash is not the entry's")
	default:
		err = p.included(c.Hash)
	}
	if err != nil {
		return fmt.Errorf("check proof of entry %d: %w: %w", p.Index, worker.ErrInvalid, err)
	}
	return nil
}

// Extends checks that the published log still extends an older checkpoint of
// it, such as the one in a worker's vault block. Both signatures must verify.
// An old checkpoint that is none of this log's is a worker.ErrInvalid, a log
// that does not extend it a worker.ErrCorrupt.
func Extends(ctx context.Context, dir string, verifier note.Verifier, old string) error {
	from, err := open([]byte(old), verifier)
	if err != nil {
		return fmt.Errorf("extend older checkpoint: %w: %w", worker.ErrInvalid, err)
	}
	d := folder(dir)
	unlock, err := d.lock(ctx, false)
	if err != nil {
		return err
	}
	defer unlock()
	signed, _, err := d.checkpoint()
	if err != nil {
		return err
	}
	to, err := open(signed, verifier)
	if err != nil {
		return changed(err)
	}
	if err := d.consistent(from, to); err != nil {
		return fmt.Errorf("extend checkpoint of %d entries: %w", from.Size, changed(err))
	}
	return nil
}

// consistent proves from the tiles that one tree is the beginning of another.
func (d folder) consistent(from, to log.Checkpoint) error {
	if from.Size > to.Size {
		return fmt.Errorf("the log has %d entries", to.Size)
	}
	if from.Size == 0 && !bytes.Equal(from.Hash, rfc6962.DefaultHasher.EmptyRoot()) {
		return errors.New("the root hash of no entries is another")
	}
	nodes, err := proof.Consistency(from.Size, to.Size)
	if err != nil {
		return err
	}
	path, err := d.hashes(nodes, to.Size)
	if err != nil {
		return err
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, from.Size, to.Size, path, from.Hash, to.Hash)
}

// checkpoint reads the published checkpoint without verifying it.
func (d folder) checkpoint() ([]byte, log.Checkpoint, error) {
	signed, err := d.read(layout.CheckpointPath, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, log.Checkpoint{}, fmt.Errorf("no checkpoint in %s: %w", d, worker.ErrNotFound)
	}
	if err != nil {
		return nil, log.Checkpoint{}, fmt.Errorf("read checkpoint: %w", err)
	}
	c, err := claims(signed)
	if err != nil {
		return nil, c, changed(err)
	}
	return signed, c, nil
}

// hashes reads the nodes of a proof from the tiles of the tree of this size.
func (d folder) hashes(nodes proof.Nodes, size uint64) ([][]byte, error) {
	path := make([][]byte, 0, len(nodes.IDs))
	for _, id := range nodes.IDs {
		h, err := d.node(id, size)
		if err != nil {
			return nil, changed(err)
		}
		path = append(path, h)
	}
	return nodes.Rehash(path, rfc6962.DefaultHasher.HashChildren)
}

// node is the hash of one node. Tiles store the bottom row of their eight
// levels, the rest is computed.
func (d folder) node(id compact.NodeID, size uint64) ([]byte, error) {
	level, index, up, n := layout.NodeCoordsToTileAddress(uint64(id.Level), id.Index)
	name := layout.TilePath(level, index, layout.PartialTileSize(level, index, size))
	tile, err := os.ReadFile(d.path(name))
	if err != nil {
		return nil, fmt.Errorf("read tile: %w", err)
	}
	first, end := int(n)<<up*hashSize, int(n+1)<<up*hashSize
	if end > len(tile) {
		return nil, fmt.Errorf("%s: %d bytes, too few", name, len(tile))
	}
	below := ranges().NewEmptyRange(0)
	for at := first; at < end; at += hashSize {
		if err := below.Append(tile[at:at+hashSize], nil); err != nil {
			return nil, err
		}
	}
	return below.GetRootHash(nil)
}
