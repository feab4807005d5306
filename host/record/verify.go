package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

// maxFile is more than any file of the log can have.
const maxFile = layout.EntryBundleWidth*(2+MaxEntry) + 1

// Report is what Verify found.
type Report struct {
	Size        uint64   `json:"size"`        // entries that the checkpoint covers
	Root        []byte   `json:"root"`        // computed from the rows
	Unpublished uint64   `json:"unpublished"` // rows beyond the checkpoint
	Problems    []string `json:"problems"`    // each names a file, an entry, or both
	// Leftovers are files that an interrupted publication leaves: they hold what
	// the rows say, or were never put in place. The next start removes them.
	Leftovers []string `json:"leftovers"`
}

// Verify computes the whole log again from the rows and compares every file
// below dir with it: it names each that was changed, is missing or does not
// belong there, and says whether the checkpoint is the signed one of the rows.
// It works while a host is publishing and changes nothing. The error is about
// what could not be read at all; findings are in the report.
func Verify(ctx context.Context, dir string, s Source, verifier note.Verifier) (Report, error) {
	v := &verification{
		dir: folder(dir), tree: newTree(), seen: map[string]bool{}, extra: map[tilePlace][]tilePlace{},
		report: Report{Problems: []string{}, Leftovers: []string{}},
	}
	if err := v.snapshot(ctx); err != nil {
		return Report{}, fmt.Errorf("verify record: %w", err)
	}
	have, err := s.Size(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("verify record: read size: %w", err)
	}
	v.judgeCheckpoint(verifier, have)
	v.collectExtra()
	if err := v.judgeFiles(ctx, s, have); err != nil {
		return Report{}, fmt.Errorf("verify record: %w", err)
	}
	v.judgeRest()
	return v.report, nil
}

// verification is one run of Verify.
type verification struct {
	dir        folder
	checkpoint []byte // nil when there is none
	claims     log.Checkpoint
	found      map[string]fs.FileMode
	edge       map[string][]byte // partial tiles, as they were under the lock
	tree       *tree
	seen       map[string]bool           // files of the log, compared
	extra      map[tilePlace][]tilePlace // other tiles, by the full tile in whose place they are
	report     Report
}

func (v *verification) problem(format string, args ...any) {
	v.report.Problems = append(v.report.Problems, fmt.Sprintf(format, args...))
}

// snapshot takes a consistent picture of what changes while a host publishes:
// the names, the checkpoint and the partial tiles. Full tiles never change.
func (v *verification) snapshot(ctx context.Context) error {
	unlock, err := v.dir.lock(ctx, false)
	if err != nil {
		return err
	}
	defer unlock()
	if v.found, err = v.dir.files(); err != nil {
		return err
	}
	left, err := os.ReadDir(v.dir.path(unfinished))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	for _, e := range left {
		v.report.Leftovers = append(v.report.Leftovers, unfinished+"/"+e.Name())
	}
	v.edge = map[string][]byte{}
	for name, kind := range v.found {
		p, ok := parseTile(name)
		if !kind.IsRegular() || (!ok || p.width == layout.TileWidth) && name != layout.CheckpointPath {
			continue
		}
		if v.edge[name], err = v.dir.read(name, maxFile); err != nil {
			return err
		}
	}
	v.checkpoint = v.edge[layout.CheckpointPath]
	return nil
}

// judgeCheckpoint decides up to which size the files are compared.
func (v *verification) judgeCheckpoint(verifier note.Verifier, have uint64) {
	v.report.Size = have
	v.seen[layout.CheckpointPath] = true
	switch kind, there := v.found[layout.CheckpointPath]; {
	case !there:
		v.problem("%s: missing", layout.CheckpointPath)
		return
	case !kind.IsRegular():
		v.problem("%s: not a regular file", layout.CheckpointPath)
		return
	}
	if _, err := open(v.checkpoint, verifier); err != nil {
		v.problem("%s: %v", layout.CheckpointPath, err)
	}
	c, err := claims(v.checkpoint)
	if err != nil {
		return
	}
	v.claims = c
	if c.Size > have {
		v.problem("registry: %d entries, the checkpoint covers %d: the rows from entry %d on are missing", have, c.Size, have)
	}
	v.report.Size = min(c.Size, have)
	v.report.Unpublished = have - v.report.Size
}

// collectExtra notes the tiles that the tree does not have.
func (v *verification) collectExtra() {
	for name, kind := range v.found {
		if p, ok := parseTile(name); ok && kind.IsRegular() && !p.of(v.report.Size) {
			v.extra[p.place()] = append(v.extra[p.place()], p)
		}
	}
}

// judgeFiles compares each file that the rows make with the one on disk. Rows
// that are not published yet only serve to judge what an interrupted
// publication left.
func (v *verification) judgeFiles(ctx context.Context, s Source, have uint64) error {
	for r, err := range rows(ctx, s, 0, have) {
		if errors.Is(err, worker.ErrCorrupt) {
			v.problem("registry: %v", err)
			break
		}
		if err != nil {
			return err
		}
		if r.index == v.report.Size {
			v.judgeEdge()
		}
		if err := v.tree.append(r.data, v.judgeFull); err != nil {
			v.problem("registry: %v", err)
			break
		}
	}
	if v.report.Root == nil {
		v.judgeEdge()
	}
	for _, f := range v.tree.partial() {
		v.excuse(f)
	}
	return nil
}

// judgeEdge compares the partial tiles and the root, when the tree has the size
// of the checkpoint (or the rows have ended before).
func (v *verification) judgeEdge() {
	for _, f := range v.tree.partial() {
		v.compare(f)
	}
	root, err := v.tree.root()
	if err != nil {
		v.problem("registry: %v", err)
		return
	}
	v.report.Root = root
	if v.claims.Size == v.tree.size() && v.claims.Origin != "" && !bytes.Equal(root, v.claims.Hash) {
		v.problem("%s: root hash is not that of the registry's %d rows", layout.CheckpointPath, v.tree.size())
	}
}

// judgeFull takes a full tile or bundle that the rows make.
func (v *verification) judgeFull(f file) {
	if v.report.Root == nil {
		v.compare(f)
	}
	v.excuse(f)
}

// excuse finds the extra tiles in the place of f that hold what f says as far
// as they go: an interrupted publication left them.
func (v *verification) excuse(f file) {
	p, _ := parseTile(f.path)
	for _, e := range v.extra[p.place()] {
		got, err := v.read(e.path(), maxFile)
		if err == nil && e.width <= p.width && bytes.Equal(got, p.head(f.data, e.width)) {
			v.seen[e.path()] = true
			v.report.Leftovers = append(v.report.Leftovers, e.path())
		}
	}
}

// judgeRest names what is in the folder and not of the log.
func (v *verification) judgeRest() {
	for name := range v.found {
		if !v.seen[name] {
			v.problem("%s: not a file of the log", name)
		}
	}
	slices.Sort(v.report.Problems)
	slices.Sort(v.report.Leftovers)
}

// read is a file as it was under the lock when it can change, else as it is.
func (v *verification) read(name string, limit int64) ([]byte, error) {
	if data, ok := v.edge[name]; ok {
		return data, nil
	}
	return v.dir.read(name, limit)
}

// read reads at most limit bytes of a regular file.
func (d folder) read(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
