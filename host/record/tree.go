package record

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/dals-host/dals-host/host/worker"
)

const hashSize = 32

// file is one file of the log: its slash-separated path below the folder, and
// what it holds.
type file struct {
	path string
	data []byte
}

// tree turns entries into files. It holds no more than the right edge: the
// compact range of the whole tree, the last bundle and the last tile of each
// level, as long as they are partial.
type tree struct {
	edge   *compact.Range
	bundle []byte
	tiles  [][]byte // by level
}

func newTree() *tree {
	return &tree{edge: ranges().NewEmptyRange(0)}
}

func ranges() *compact.RangeFactory {
	return &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
}

func (t *tree) size() uint64 { return t.edge.End() }

// root is the RFC 6962 root hash.
func (t *tree) root() ([]byte, error) {
	if t.size() == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	return t.edge.GetRootHash(nil)
}

// append adds one entry and hands out each bundle and tile that it completes.
func (t *tree) append(entry []byte, full func(file)) error {
	if len(entry) > MaxEntry {
		return fmt.Errorf("append entry %d: %d bytes, at most %d: %w", t.size(), len(entry), MaxEntry, worker.ErrCorrupt)
	}
	index := t.size()
	t.bundle = binary.BigEndian.AppendUint16(t.bundle, uint16(len(entry)))
	t.bundle = append(t.bundle, entry...)
	if (index+1)%layout.EntryBundleWidth == 0 {
		full(file{layout.EntriesPath(index/layout.EntryBundleWidth, 0), t.bundle})
		t.bundle = nil
	}
	return t.edge.Append(rfc6962.DefaultHasher.HashLeaf(entry), func(id compact.NodeID, hash []byte) {
		t.visit(id, hash, full)
	})
}

// visit keeps the hashes that tiles store: the bottom row of each.
func (t *tree) visit(id compact.NodeID, hash []byte, full func(file)) {
	if id.Level%layout.TileHeight != 0 {
		return
	}
	level := int(id.Level / layout.TileHeight)
	if level == len(t.tiles) {
		t.tiles = append(t.tiles, nil)
	}
	t.tiles[level] = append(t.tiles[level], hash...)
	if len(t.tiles[level]) == layout.TileWidth*hashSize {
		full(file{layout.TilePath(uint64(level), id.Index/layout.TileWidth, 0), t.tiles[level]})
		t.tiles[level] = nil
	}
}

// partial are the files of the right edge: what the tree of this size has
// beside the full bundles and tiles.
func (t *tree) partial() []file {
	var files []file
	if n := t.size() % layout.EntryBundleWidth; n > 0 {
		files = append(files, file{layout.EntriesPath(t.size()/layout.EntryBundleWidth, uint8(n)), slices.Clone(t.bundle)})
	}
	for level, tile := range t.tiles {
		if n := len(tile) / hashSize; n > 0 {
			index := (t.size() >> (level * layout.TileHeight)) / layout.TileWidth
			files = append(files, file{layout.TilePath(uint64(level), index, uint8(n)), slices.Clone(tile)})
		}
	}
	return files
}
