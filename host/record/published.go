package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

// Published are the entries in a log's own files, as far as its signed
// checkpoint vouches for them. It needs no registry, and changes nothing.
type Published struct {
	Checkpoint []byte // the signed note
	Size       uint64 // the entries that it covers
	// Sound is how many entries, from the first on, are whole and proven to be
	// those of the checkpoint. It is Size where nothing is damaged.
	Sound  uint64
	Damage []string // the files that are not what the checkpoint vouches for

	dir     folder
	bundles []bundle
}

// bundle is what is known of one entry bundle: the hash of its leaves, as the
// checkpoint vouches for it, and how many of its entries are sound.
type bundle struct {
	proven [][]byte // leaf hashes; nil where nothing proves them
	sound  int
}

// OpenPublished reads all files of the log in dir and says what of it can be
// used. Without a checkpoint that the verifier accepts nothing can be: that is a
// worker.ErrCorrupt. So is nothing else: see Sound.
func OpenPublished(ctx context.Context, dir string, verifier note.Verifier) (*Published, error) {
	p := &Published{dir: folder(dir)}
	if err := p.open(ctx, verifier); err != nil {
		return nil, fmt.Errorf("read published record: %w", err)
	}
	return p, nil
}

func (p *Published) open(ctx context.Context, verifier note.Verifier) error {
	signed, err := p.dir.read(layout.CheckpointPath, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no checkpoint in %s: %w", p.dir, worker.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	c, err := open(signed, verifier)
	if err != nil {
		return fmt.Errorf("%w: %w", worker.ErrCorrupt, err)
	}
	p.Checkpoint, p.Size = signed, c.Size
	leaves, tiles := p.readAll(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	chosen := p.choose(leaves, tiles)
	root, err := rootOf(chosen)
	if err == nil && !bytes.Equal(root, c.Hash) {
		p.Damage = append(p.Damage, fmt.Sprintf("%s: its root hash is not that of the files", layout.CheckpointPath))
		return nil
	}
	if err != nil {
		p.Damage = append(p.Damage, err.Error())
		return nil
	}
	p.settle(leaves, tiles, chosen)
	return nil
}

// readAll gives for each bundle the leaf hashes that its entries have, and
// those that the hash tile beside it says; nil where a file cannot be read.
func (p *Published) readAll(ctx context.Context) (leaves, tiles [][][]byte) {
	for index := uint64(0); index*layout.EntryBundleWidth < p.Size && ctx.Err() == nil; index++ {
		width := min(p.Size-index*layout.EntryBundleWidth, layout.EntryBundleWidth)
		entries, err := p.readBundle(index, width)
		if err != nil {
			p.Damage = append(p.Damage, err.Error())
		}
		hashes, err := p.readTile(tilePlace{index: index, width: width})
		if err != nil {
			p.Damage = append(p.Damage, err.Error())
		}
		leaves, tiles = append(leaves, leafHashesOf(entries)), append(tiles, hashes)
	}
	return leaves, tiles
}

func (p *Published) readBundle(index, width uint64) ([][]byte, error) {
	place := tilePlace{entries: true, index: index, width: width}
	data, err := p.dir.read(place.path(), maxFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", place.path(), unreadable(err))
	}
	var b api.EntryBundle
	if err := b.UnmarshalText(data); err != nil || uint64(len(b.Entries)) != width {
		return nil, fmt.Errorf("%s: not a bundle of %d entries", place.path(), width)
	}
	return b.Entries, nil
}

func (p *Published) readTile(place tilePlace) ([][]byte, error) {
	data, err := p.dir.read(place.path(), layout.TileWidth*hashSize+1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", place.path(), unreadable(err))
	}
	if uint64(len(data)) != place.width*hashSize {
		return nil, fmt.Errorf("%s: %d bytes, want %d", place.path(), len(data), place.width*hashSize)
	}
	hashes := make([][]byte, place.width)
	for i := range hashes {
		hashes[i] = data[i*hashSize : (i+1)*hashSize]
	}
	return hashes, nil
}

// unreadable leaves the path out: the message has the log's own.
func unreadable(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

func leafHashesOf(entries [][]byte) [][]byte {
	if entries == nil {
		return nil
	}
	hashes := make([][]byte, len(entries))
	for i, e := range entries {
		hashes[i] = rfc6962.DefaultHasher.HashLeaf(e)
	}
	return hashes
}

// choose takes, where bundle and tile do not agree, the one that the tile above
// speaks for, or else the tile: it is the root hash that decides in the end.
func (p *Published) choose(leaves, tiles [][][]byte) [][][]byte {
	chosen := make([][][]byte, len(leaves))
	for i := range leaves {
		chosen[i] = tiles[i]
		switch {
		case tiles[i] == nil:
			chosen[i] = leaves[i]
		case leaves[i] != nil && !equalHashes(leaves[i], tiles[i]) && p.above(uint64(i), leaves[i]):
			chosen[i] = leaves[i]
		}
	}
	return chosen
}

// above says whether the tile of the next level has the hash of these leaves.
func (p *Published) above(index uint64, leaves [][]byte) bool {
	place := tilePlace{level: 1, index: index / layout.TileWidth}
	place.width = min(p.Size>>layout.TileHeight-place.index*layout.TileWidth, layout.TileWidth)
	if len(leaves) != layout.TileWidth || place.width == 0 {
		return false
	}
	hashes, err := p.readTile(place)
	if err != nil {
		return false
	}
	root, err := rootOf([][][]byte{leaves})
	return err == nil && bytes.Equal(hashes[index%layout.TileWidth], root)
}

func equalHashes(a, b [][]byte) bool {
	return len(a) == len(b) && soundLeaves(a, b) == len(a)
}

// soundLeaves counts the leaves of got, from the first on, that want has.
func soundLeaves(got, want [][]byte) int {
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			return i
		}
	}
	return min(len(got), len(want))
}

// rootOf is the root hash over all leaves.
func rootOf(leaves [][][]byte) ([]byte, error) {
	edge := ranges().NewEmptyRange(0)
	for i, each := range leaves {
		if each == nil {
			return nil, fmt.Errorf("entries from %d on: neither bundle nor tile can be read", i*layout.EntryBundleWidth)
		}
		for _, h := range each {
			if err := edge.Append(h, nil); err != nil {
				return nil, err
			}
		}
	}
	return rootHash(edge)
}

func rootHash(edge *compact.Range) ([]byte, error) {
	if edge.End() == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	return edge.GetRootHash(nil)
}

// settle counts what is sound, once it is proven which leaves are right.
func (p *Published) settle(leaves, tiles, proven [][][]byte) {
	whole := true
	for i := range leaves {
		b := bundle{proven: proven[i], sound: soundLeaves(leaves[i], proven[i])}
		p.bundles = append(p.bundles, b)
		if b.sound < len(b.proven) && leaves[i] != nil {
			at := i*layout.EntryBundleWidth + b.sound
			p.Damage = append(p.Damage, fmt.Sprintf("%s: entry %d is not what was published", layout.EntriesPath(uint64(i), partialOf(b)), at))
		}
		if tiles[i] != nil && !equalHashes(tiles[i], b.proven) {
			p.Damage = append(p.Damage, fmt.Sprintf("%s: not the hashes of its entries", layout.TilePath(0, uint64(i), partialOf(b))))
		}
		if whole {
			p.Sound += uint64(b.sound)
		}
		whole = whole && b.sound == len(b.proven)
	}
}

func partialOf(b bundle) uint8 { return uint8(len(b.proven) % layout.EntryBundleWidth) }

// Entries yields the sound entries, bundle by bundle, with the index of the
// first. A file that has changed since OpenPublished is a worker.ErrCorrupt.
func (p *Published) Entries(ctx context.Context) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		for i, b := range p.bundles {
			first := uint64(i) * layout.EntryBundleWidth
			if first >= p.Sound {
				return
			}
			entries, err := p.readBundle(uint64(i), uint64(len(b.proven)))
			if err == nil && soundLeaves(leafHashesOf(entries), b.proven) < b.sound {
				err = fmt.Errorf("%s: changed while it was read", layout.EntriesPath(uint64(i), partialOf(b)))
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				yield(Group{}, fmt.Errorf("read published record: %w: %w", worker.ErrCorrupt, err))
				return
			}
			if !yield(Group{First: first, Entries: entries[:b.sound]}, nil) {
				return
			}
		}
	}
}

// Publish writes what is committed and not published yet, and returns when it
// is. It is for a log that nobody runs.
func (l *Log) Publish(ctx context.Context) error {
	if err := l.catchUp(ctx); err != nil {
		return fmt.Errorf("publish record: %w", err)
	}
	return nil
}
