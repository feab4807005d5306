package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/sync/errgroup"

	"github.com/dals-host/dals-host/host/internal/failpoint"
)

// unfinished is where files are written before they are renamed into place.
// Nobody reads it; what a crash leaves there goes with the next start.
const unfinished = ".unfinished"

// together is how many files are written at a time.
const together = 8

// folder is the place of the log's files.
type folder string

func (d folder) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

// prepare makes the folder and clears what a crash left unfinished.
func (d folder) prepare() error {
	if err := os.RemoveAll(d.path(unfinished)); err != nil {
		return fmt.Errorf("clear unfinished files: %w", err)
	}
	return os.MkdirAll(d.path(unfinished), 0o700)
}

// lock takes the folder for a writer, or shared for a reader. The lock belongs
// to this process and ends with it.
func (d folder) lock(ctx context.Context, exclusive bool) (unlock func(), err error) {
	const retry = 2 * time.Millisecond
	l := flock.New(string(d), flock.SetFlag(os.O_RDONLY|syscall.O_DIRECTORY))
	take := l.TryRLockContext
	if exclusive {
		take = l.TryLockContext
	}
	if _, err := take(ctx, retry); err != nil {
		return nil, fmt.Errorf("lock %s: %w", d, err)
	}
	return func() { _ = l.Unlock() }, nil // closing the descriptor cannot leave it locked
}

// write puts files in place, each whole and durable, and then their folders.
// Several at a time: the file system commits them together.
func (d folder) write(files ...file) error {
	var g errgroup.Group
	g.SetLimit(together)
	failpoint.Hit("record", "files", "before")
	for _, f := range files {
		g.Go(func() error { return d.writeOne(f) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	failpoint.Hit("record", "files", "after")
	parents := map[string]bool{}
	for _, f := range files {
		for p := f.path; p != "."; {
			p = path.Dir(p)
			parents[p] = true
		}
	}
	failpoint.Hit("record", "folders", "before")
	for p := range parents {
		g.Go(func() error { return d.sync(p) })
	}
	err := g.Wait()
	failpoint.Hit("record", "folders", "after")
	return err
}

func (d folder) writeOne(f file) error {
	name := d.path(f.path)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("make folder of %s: %w", f.path, err)
	}
	if err := renameio.WriteFile(name, f.data, 0o600, renameio.WithTempDir(d.path(unfinished))); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

// sync makes the names in a folder durable.
func (d folder) sync(name string) error {
	f, err := os.Open(d.path(name))
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", name, err)
	}
	return nil
}

// remove takes a file away, and its folder when that held partial tiles only.
func (d folder) remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove superseded tile: %w", err)
	}
	if parent := path.Dir(name); strings.HasSuffix(parent, ".p") {
		_ = os.Remove(d.path(parent)) // another partial tile may still be in it
	}
	return nil
}

// files are the paths of everything in the folder but its own subfolders and
// what is unfinished. A map: path to what kind of thing it is.
func (d folder) files() (map[string]fs.FileMode, error) {
	found := map[string]fs.FileMode{}
	err := fs.WalkDir(os.DirFS(string(d)), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == unfinished && e.IsDir():
			return fs.SkipDir
		case !e.IsDir():
			found[name] = e.Type()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d, err)
	}
	return found, nil
}

// tilePlace is which tile or bundle a path names.
type tilePlace struct {
	level   uint64
	entries bool // a bundle of entries rather than a tile of hashes
	index   uint64
	width   uint64 // 1 to 256
}

// parseTile reads the path of a tile or an entry bundle; false for any other.
func parseTile(name string) (tilePlace, bool) {
	rest, ok := strings.CutPrefix(name, "tile/")
	if !ok {
		return tilePlace{}, false
	}
	level, index, ok := strings.Cut(rest, "/")
	if !ok {
		return tilePlace{}, false
	}
	p := tilePlace{entries: level == "entries"}
	var partial uint8
	var err error
	if p.entries {
		p.index, partial, err = layout.ParseTileIndexPartial(index)
	} else {
		p.level, p.index, partial, err = layout.ParseTileLevelIndexPartial(level, index)
	}
	if err != nil {
		return tilePlace{}, false
	}
	p.width = uint64(partial)
	if partial == 0 {
		p.width = layout.TileWidth
	}
	return p, p.path() == name
}

func (p tilePlace) path() string {
	if p.entries {
		return layout.EntriesPath(p.index, uint8(p.width))
	}
	return layout.TilePath(p.level, p.index, uint8(p.width))
}

// of says whether the tree of this size has exactly this tile.
func (p tilePlace) of(size uint64) bool {
	atLevel := size >> (p.level * layout.TileHeight)
	first := p.index * layout.TileWidth
	return first < atLevel && min(atLevel-first, layout.TileWidth) == p.width
}
