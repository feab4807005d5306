package record

import (
	"bytes"
	"fmt"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
)

// place is the full tile in whose place p is.
func (p tilePlace) place() tilePlace {
	p.width = layout.TileWidth
	return p
}

// head is the part of a tile's or bundle's data that a tile of this width has;
// nil when it has not that much.
func (p tilePlace) head(data []byte, width uint64) []byte {
	if !p.entries {
		return data[:min(len(data), int(width)*hashSize)]
	}
	var b api.EntryBundle
	if err := b.UnmarshalText(data); err != nil || uint64(len(b.Entries)) < width {
		return nil
	}
	end := 0
	for _, e := range b.Entries[:width] {
		end += 2 + len(e)
	}
	return data[:end]
}

// compare names what differs between a file that the rows make and the one in
// the folder.
func (v *verification) compare(want file) {
	v.seen[want.path] = true
	kind, there := v.found[want.path]
	switch {
	case !there:
		v.problem("%s: missing", want.path)
		return
	case !kind.IsRegular():
		v.problem("%s: not a regular file", want.path)
		return
	}
	p, _ := parseTile(want.path)
	limit := int64(len(want.data)) + 1
	if p.entries {
		limit = maxFile // a changed row makes another length
	}
	got, err := v.read(want.path, limit)
	if err != nil {
		v.problem("%s: %v", want.path, err)
		return
	}
	if bytes.Equal(got, want.data) {
		return
	}
	if p.entries {
		v.compareEntries(p, got, want.data)
		return
	}
	v.problem("%s: %s", p.path(), p.differingHash(got, want.data))
}

// differingHash says which hash of a tile is the first to differ.
func (p tilePlace) differingHash(got, want []byte) string {
	if len(got) < len(want) {
		return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
	}
	for n := range len(want) / hashSize {
		at := n * hashSize
		if bytes.Equal(got[at:at+hashSize], want[at:at+hashSize]) {
			continue
		}
		span := uint64(1) << (p.level * layout.TileHeight)
		first := (p.index*layout.TileWidth + uint64(n)) * span
		if span == 1 {
			return fmt.Sprintf("hash %d, of entry %d, is not that of the registry's row", n, first)
		}
		return fmt.Sprintf("hash %d, over entries %d to %d, is not that of the registry's rows", n, first, first+span-1)
	}
	return fmt.Sprintf("more than %d bytes", len(want))
}

// compareEntries says which entries of a bundle differ, and whether it was
// rather the registry's row that changed: then bundle and tile agree.
func (v *verification) compareEntries(p tilePlace, got, want []byte) {
	var have, rows api.EntryBundle
	_ = rows.UnmarshalText(want) // our own
	if err := have.UnmarshalText(got); err != nil || len(have.Entries) != len(rows.Entries) {
		v.problem("%s: not a bundle of %d entries (%d bytes, want %d)", p.path(), len(rows.Entries), len(got), len(want))
		return
	}
	tile := tilePlace{index: p.index, width: p.width}
	hashes, err := v.read(tile.path(), layout.TileWidth*hashSize)
	for n := range rows.Entries {
		if bytes.Equal(have.Entries[n], rows.Entries[n]) {
			continue
		}
		index := p.index*layout.EntryBundleWidth + uint64(n)
		v.problem("%s: entry %d is not what the registry's row says", p.path(), index)
		leaf := rfc6962.DefaultHasher.HashLeaf(have.Entries[n])
		if at := n * hashSize; err == nil && len(hashes) >= at+hashSize && bytes.Equal(hashes[at:at+hashSize], leaf) {
			v.problem("registry: the row of entry %d is not what was published: %s and %s agree on another", index, p.path(), tile.path())
		}
	}
}
