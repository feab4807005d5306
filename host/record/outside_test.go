package record

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dals-host/dals-host/host/worker"
)

// tiles reads our files for the two outside verifiers.
type tiles struct{ dir folder }

func (r tiles) ReadCheckpoint(context.Context) ([]byte, error) {
	return os.ReadFile(r.dir.path(layout.CheckpointPath))
}

func (r tiles) ReadTile(_ context.Context, level, index uint64, partial uint8) ([]byte, error) {
	return os.ReadFile(r.dir.path(layout.TilePath(level, index, partial)))
}

func (r tiles) ReadEntryBundle(_ context.Context, index uint64, partial uint8) ([]byte, error) {
	return os.ReadFile(r.dir.path(layout.EntriesPath(index, partial)))
}

func (r tiles) Height() int { return layout.TileHeight }

func (r tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range want {
		data, err := r.ReadTile(context.Background(), uint64(t.L), uint64(t.N), uint8(t.W))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func (r tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func leafHashes(bundle []byte) ([][]byte, error) {
	var b api.EntryBundle
	if err := b.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var hashes [][]byte
	for _, e := range b.Entries {
		hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return hashes, nil
}

// TestOutsideVerifiers has the log judged by code that shares nothing with it:
// Tessera's fsck, and the checksum database's tlog, which computes the tree
// from the rows by itself and proofs from our tiles.
func TestOutsideVerifiers(t *testing.T) {
	t.Parallel()
	for _, size := range []uint64{0, 1, 255, 256, 257, 70000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			dir, s := publish(t, size)
			signed, err := os.ReadFile(dir + "/checkpoint")
			if err != nil {
				t.Fatal(err)
			}
			c, err := open(signed, verifier(t))
			if err != nil || c.Size != size || c.Origin != "dals.test/record" {
				t.Fatalf("checkpoint %+v, %v", c, err)
			}
			// fsck asks for a full tile as for a partial one of width 0 after
			// cutting 256 to eight bits, as layout does.
			if err := fsck.New(c.Origin, verifier(t), tiles{folder(dir)}, leafHashes, fsck.Opts{N: 1}).Check(t.Context()); err != nil {
				t.Errorf("fsck: %v", err)
			}
			judgeByTlog(t, dir, s, tlog.Tree{N: int64(size), Hash: tlog.Hash(c.Hash)})
			if r := verify(t, dir, s); len(r.Problems)+len(r.Leftovers) > 0 || r.Size != size || !bytes.Equal(r.Root, c.Hash) {
				t.Errorf("verify: %+v", r)
			}
		})
	}
}

// stored are the hashes of a tree that tlog computes from the rows.
func stored(t *testing.T, s *rowsOf) tlog.HashReaderFunc {
	t.Helper()
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, i := range indexes {
			found = append(found, hashes[i])
		}
		return found, nil
	})
	for i := range s.size.Load() {
		more, err := tlog.StoredHashes(int64(i), s.row(i), reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
	}
	return reader
}

func judgeByTlog(t *testing.T, dir string, s *rowsOf, tree tlog.Tree) {
	t.Helper()
	fromRows := stored(t, s)
	if root, err := tlog.TreeHash(tree.N, fromRows); err != nil || root != tree.Hash {
		t.Fatalf("tlog says root %s, %v; the checkpoint %s", root, err, tree.Hash)
	}
	fromTiles := tlog.TileHashReader(tree, tiles{folder(dir)})
	for range min(tree.N, 30) {
		i := rand.Int64N(tree.N)
		proof, err := tlog.ProveRecord(tree.N, i, fromTiles)
		if err == nil {
			err = tlog.CheckRecord(proof, tree.N, tree.Hash, i, tlog.RecordHash(s.row(uint64(i))))
		}
		if err != nil {
			t.Errorf("tlog: entry %d: %v", i, err)
		}
		judgeProof(t, dir, s, tree, uint64(i))

		older := 1 + rand.Int64N(tree.N)
		old, err := tlog.TreeHash(older, fromRows)
		if err != nil {
			t.Fatal(err)
		}
		treeProof, err := tlog.ProveTree(tree.N, older, fromTiles)
		if err == nil {
			err = tlog.CheckTree(treeProof, tree.N, tree.Hash, older, old)
		}
		if err != nil {
			t.Errorf("tlog: tree of %d: %v", older, err)
		}
	}
}

// judgeProof has tlog check a proof of ours after a trip through JSON.
func judgeProof(t *testing.T, dir string, s Source, tree tlog.Tree, index uint64) {
	t.Helper()
	made, err := Prove(t.Context(), dir, s, index)
	if err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	var p Proof
	if err := json.Unmarshal(line, &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(verifier(t)); err != nil {
		t.Error(err)
	}
	var path tlog.RecordProof
	for _, h := range p.InclusionPath {
		path = append(path, tlog.Hash(h))
	}
	if err := tlog.CheckRecord(path, tree.N, tree.Hash, int64(index), tlog.RecordHash([]byte(p.Entry))); err != nil {
		t.Errorf("tlog, of our proof of entry %d: %v", index, err)
	}
	p.Entry += " "
	if err := p.Check(verifier(t)); err == nil {
		t.Errorf("a changed entry %d passes", index)
	}
}

func TestProveRefuses(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 300)
	s.size.Store(310)
	for _, c := range []struct {
		index uint64
		want  error
	}{{309, worker.ErrUnavailable}, {310, worker.ErrNotFound}, {1 << 63, worker.ErrNotFound}} {
		if _, err := Prove(t.Context(), dir, s, c.index); !isHinted(err, c.want) {
			t.Errorf("entry %d: %v", c.index, err)
		}
	}
	p, err := Prove(t.Context(), dir, s, 17)
	if err != nil {
		t.Fatal(err)
	}
	for name, forge := range map[string]func(*Proof){
		"index":      func(p *Proof) { p.Index++ },
		"size":       func(p *Proof) { p.TreeSize-- },
		"leaf":       func(p *Proof) { p.LeafHash[0] ^= 1 },
		"path":       func(p *Proof) { p.InclusionPath[3][5] ^= 1 },
		"short path": func(p *Proof) { p.InclusionPath = p.InclusionPath[1:] },
		"checkpoint": func(p *Proof) { p.Checkpoint = p.Checkpoint[:len(p.Checkpoint)-9] + "AAAAAAA=\n" },
		"nothing":    func(p *Proof) { *p = Proof{} },
	} {
		q := p
		q.LeafHash, q.InclusionPath = bytes.Clone(p.LeafHash), nil
		for _, h := range p.InclusionPath {
			q.InclusionPath = append(q.InclusionPath, bytes.Clone(h))
		}
		forge(&q)
		if err := q.Check(verifier(t)); !isHinted(err, worker.ErrInvalid) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	// Rows or tiles that do not support the checkpoint are found when proving.
	s.change = map[uint64][]byte{17: []byte("other")}
	if _, err := Prove(t.Context(), dir, s, 17); !isHinted(err, worker.ErrCorrupt) || worker.HintOf(err) == "" {
		t.Errorf("changed row: %v", err)
	}
}

func TestExtends(t *testing.T) {
	t.Parallel()
	dir, s := t.TempDir(), newRows(0)
	var olds []string
	for _, n := range []uint64{0, 1, 254, 1, 1, 300, 1443} {
		s.size.Add(n)
		publishIn(t, dir, s)
		olds = append(olds, contents(t, dir)["checkpoint"])
	}
	for _, old := range olds {
		if err := Extends(t.Context(), dir, verifier(t), old); err != nil {
			t.Error(err)
		}
	}
	// A log that was made anew with another first entry extends none but the
	// empty tree; a shorter one not even itself of later.
	other := newRows(2000)
	other.change = map[uint64][]byte{0: []byte("other")}
	anew := t.TempDir()
	publishIn(t, anew, other)
	short, _ := publish(t, 600)
	for i, old := range olds[1:] {
		if err := Extends(t.Context(), anew, verifier(t), old); !isHinted(err, worker.ErrCorrupt) {
			t.Errorf("checkpoint %d, another log: %v", i+1, err)
		}
	}
	if err := Extends(t.Context(), short, verifier(t), olds[6]); !isHinted(err, worker.ErrCorrupt) {
		t.Errorf("rolled-back log: %v", err)
	}
	if err := Extends(t.Context(), anew, verifier(t), olds[0]); err != nil {
		t.Errorf("empty tree: %v", err)
	}
	for _, bad := range []string{"", "x", olds[3] + "— dals.test/record Kmm\n", olds[3][:40]} {
		if err := Extends(t.Context(), dir, verifier(t), bad); !isHinted(err, worker.ErrInvalid) {
			t.Errorf("checkpoint %q: %v", bad, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	tr := newTree()
	for i := range 3 {
		signed, err := sign(tr, signer(f))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(signed)
		f.Add(append(signed, "— somebody.else AAAAAAA=\n"...))
		if err := tr.append([]byte{byte(i)}, func(file) {}); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte("dals.test/record\n0\n\n— dals.test/record AAAAAAA=\n"))
	v := verifier(f)
	f.Fuzz(func(t *testing.T, note []byte) {
		// Nobody but the key makes a checkpoint, and it has one form.
		c, err := open(note, v)
		if err == nil && (c.Origin != v.Name() || len(c.Hash) != hashSize || c.Size > 2) {
			t.Fatalf("%q reads as %+v", note, c)
		}
	})
}
