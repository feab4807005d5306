package record

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// isHinted says whether err is of a family.
func isHinted(err, family error) bool { return err != nil && errors.Is(err, family) }

// names says whether a problem of r contains all of the words.
func names(r Report, words ...string) bool {
	return slices.ContainsFunc(r.Problems, func(p string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p, w) })
	})
}

func TestAnyFlippedByteIsNamed(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 777)
	files := contents(t, dir)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := []byte(files[name])
		offsets := []int{0, len(data) - 1, len(data) - 3}
		for range 5 {
			offsets = append(offsets, rand.IntN(len(data)))
		}
		for _, at := range offsets {
			bit := byte(1) << rand.IntN(8)
			changed := bytes.Clone(data)
			changed[at] ^= bit
			overwrite(t, dir, name, changed)
			if r := verify(t, dir, s); !names(r, name+":") {
				t.Errorf("%s, byte %d, bit %02x: %q", name, at, bit, r.Problems)
			}
		}
		overwrite(t, dir, name, data)
	}
	if r := verify(t, dir, s); len(r.Problems) > 0 {
		t.Fatalf("restored, but %q", r.Problems)
	}
}

func overwrite(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTheSparesOfBase64 changes bits of the signature's text that mean nothing:
// they change no signature, and are named all the same.
func TestTheSparesOfBase64(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 3)
	signed := contents(t, dir)["checkpoint"]
	at := len(signed) - len("=\n") - 1
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	n := strings.IndexByte(alphabet, signed[at])
	overwrite(t, dir, "checkpoint", []byte(signed[:at]+alphabet[n^1:n^1+1]+signed[at+1:]))
	if r := verify(t, dir, s); !names(r, "checkpoint:") {
		t.Errorf("%q", r.Problems)
	}
}

func TestVerifyNames(t *testing.T) {
	t.Parallel()
	const size = 777
	rewrite := func(name string, change func([]byte) []byte) func(*testing.T, string, *rowsOf) {
		return func(t *testing.T, dir string, _ *rowsOf) {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, dir, name, change(data))
		}
	}
	put := func(name string, data string) func(*testing.T, string, *rowsOf) {
		return func(t *testing.T, dir string, _ *rowsOf) { overwrite(t, dir, name, []byte(data)) }
	}
	for name, c := range map[string]struct {
		harm func(*testing.T, string, *rowsOf)
		want []string
	}{
		"entry": {
			rewrite("tile/entries/001", func(b []byte) []byte { return bytes.Replace(b, []byte(`"n":300`), []byte(`"n":301`), 1) }),
			[]string{"tile/entries/001: entry 300 "},
		},
		"leaf hash":   {rewrite("tile/0/001", func(b []byte) []byte { b[44*hashSize] ^= 1; return b }), []string{"tile/0/001: hash 44, of entry 300,"}},
		"upper hash":  {rewrite("tile/1/000.p/3", func(b []byte) []byte { b[hashSize] ^= 1; return b }), []string{"tile/1/000.p/3: hash 1, over entries 256 to 511,"}},
		"short tile":  {rewrite("tile/0/002", func(b []byte) []byte { return b[:len(b)-1] }), []string{"tile/0/002: 8191 bytes, want 8192"}},
		"long tile":   {rewrite("tile/0/002", func(b []byte) []byte { return append(b, 0) }), []string{"tile/0/002: more than 8192 bytes"}},
		"empty":       {rewrite("tile/entries/003.p/9", func([]byte) []byte { return nil }), []string{"tile/entries/003.p/9: not a bundle of 9 entries"}},
		"huge":        {put("tile/entries/000", strings.Repeat("x", 1<<20)), []string{"tile/entries/000: not a bundle"}},
		"extra":       {put("tile/0/notes.txt", "x"), []string{"tile/0/notes.txt: not a file of the log"}},
		"extra tile":  {put("tile/0/004", strings.Repeat("x", 8192)), []string{"tile/0/004: not a file of the log"}},
		"lying part":  {put("tile/0/003.p/8", strings.Repeat("x", 256)), []string{"tile/0/003.p/8: not a file of the log"}},
		"odd path":    {put("tile/00/000", "x"), []string{"tile/00/000: not a file of the log"}},
		"top level":   {put("README", "x"), []string{"README: not a file of the log"}},
		"no note":     {put("checkpoint", "hello\n"), []string{"checkpoint: verify checkpoint:"}},
		"empty note":  {put("checkpoint", ""), []string{"checkpoint: verify checkpoint:"}},
		"second sign": {rewrite("checkpoint", func(b []byte) []byte { return append(b, "— somebody.else AAAAAAA=\n"...) }), []string{"checkpoint: verify checkpoint: more in it"}},
		"missing": {func(t *testing.T, dir string, _ *rowsOf) {
			if err := os.Remove(filepath.Join(dir, "tile/0/001")); err != nil {
				t.Fatal(err)
			}
		}, []string{"tile/0/001: missing"}},
		"missing checkpoint": {func(t *testing.T, dir string, _ *rowsOf) {
			if err := os.Remove(filepath.Join(dir, "checkpoint")); err != nil {
				t.Fatal(err)
			}
		}, []string{"checkpoint: missing"}},
		"symlink": {func(t *testing.T, dir string, _ *rowsOf) {
			path := filepath.Join(dir, "tile/0/001")
			if err := errors.Join(os.Rename(path, filepath.Join(t.TempDir(), "001")), os.Symlink("/etc/passwd", path)); err != nil {
				t.Fatal(err)
			}
		}, []string{"tile/0/001: not a regular file"}},
		"row": {
			func(_ *testing.T, _ string, s *rowsOf) { s.change = map[uint64][]byte{300: []byte("changed")} },
			[]string{"registry: the row of entry 300 is not what was published", "checkpoint: root hash is not that of the registry's 777 rows"},
		},
		"rows cut": {
			func(_ *testing.T, _ string, s *rowsOf) { s.size.Store(700) },
			[]string{"registry: 700 entries, the checkpoint covers 777: the rows from entry 700 on are missing"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, s := publish(t, size)
			c.harm(t, dir, s)
			r := verify(t, dir, s)
			for _, want := range c.want {
				if !names(r, want) {
					t.Errorf("no %q in %q", want, r.Problems)
				}
			}
		})
	}
}

// gapped is a registry that lost a group.
type gapped struct{ *rowsOf }

func (s gapped) Groups(ctx context.Context, from uint64) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		for g, err := range s.rowsOf.Groups(ctx, from) {
			if err == nil && g.First <= 300 && 300 < g.First+uint64(len(g.Entries)) {
				continue
			}
			if !yield(g, err) {
				return
			}
		}
	}
}

func TestGapInTheRows(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 777)
	if r := verify(t, dir, gapped{s}); !names(r, "registry:", "is due") {
		t.Errorf("%q", r.Problems)
	}
	_, err := Open(t.Context(), config(t, dir, gapped{s}))
	if !isHinted(err, worker.ErrCorrupt) {
		t.Errorf("open: %v", err)
	}
	l := openLog(t, t.TempDir(), gapped{s})
	if err := l.Run(t.Context()); !isHinted(err, worker.ErrCorrupt) {
		t.Errorf("run: %v", err)
	}
}

// TestVerifyWhilePublishing: whatever is being published meanwhile, readers see
// the whole log of some moment in between.
func TestVerifyWhilePublishing(t *testing.T) {
	t.Parallel()
	dir, s := t.TempDir(), newRows(0)
	l := openLog(t, dir, s)
	l.pause = 0
	stop := start(t, l)
	for range 10 {
		before := s.size.Load()
		stopGrowing := growUntilStopped(t, l, s)
		r := verify(t, dir, s)
		if r.Size > 0 {
			p, err := Prove(t.Context(), dir, s, r.Size-1)
			if err == nil {
				err = p.Check(verifier(t))
			}
			if err != nil {
				t.Error(err)
			}
		}
		stopGrowing()
		if after := s.size.Load(); len(r.Problems)+len(r.Leftovers) > 0 || r.Size < before || r.Size > after {
			t.Errorf("at %d, from %d to %d: %q, %q", r.Size, before, after, r.Problems, r.Leftovers)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// growUntilStopped has l publish more and more of s, at least once and not
// without end: a reader that is starved must not be left ever more to read.
func growUntilStopped(t *testing.T, l *Log, s *rowsOf) (stop func()) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	stopped := make(chan struct{})
	var growing sync.WaitGroup
	growing.Go(func() {
		defer cancel()
		for range 20 {
			s.grow(uint64(1 + rand.IntN(60)))
			if err := l.WaitFor(ctx, s.size.Load()-1); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-stopped:
				return
			default:
			}
		}
	})
	return func() {
		close(stopped)
		growing.Wait()
	}
}

func TestVerifyLeftovers(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 260)
	more, _ := publish(t, 600)
	for _, name := range []string{"tile/0/001", "tile/entries/001", "tile/0/002.p/88", "tile/1/000.p/2"} {
		overwrite(t, dir, name, []byte(contents(t, more)[name]))
	}
	older, _ := publish(t, 258)
	overwrite(t, dir, "tile/entries/001.p/2", []byte(contents(t, older)["tile/entries/001.p/2"]))
	overwrite(t, dir, ".unfinished/.checkpoint1", []byte("half a note"))
	s.size.Store(700)
	r := verify(t, dir, s)
	want := []string{".unfinished/.checkpoint1", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/001", "tile/entries/001.p/2"}
	if len(r.Problems) > 0 || !slices.Equal(r.Leftovers, want) || r.Unpublished != 440 {
		t.Fatalf("%+v", r)
	}
	// The next start takes them away.
	s.size.Store(260)
	openLog(t, dir, s)
	if r := verify(t, dir, s); len(r.Problems)+len(r.Leftovers) > 0 {
		t.Fatalf("%+v", r)
	}
}
