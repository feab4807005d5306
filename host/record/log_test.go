package record

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

func config(t testing.TB, dir string, s Source) Config {
	t.Helper()
	return Config{Dir: dir, Signer: signer(t), Source: s, Logger: hclog.NewNullLogger()}
}

func TestEmptyLogHasACheckpoint(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "record")
	signed, size := openLog(t, dir, newRows(0)).Checkpoint()
	const empty = "dals.test/record\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— dals.test/record "
	if size != 0 || !strings.HasPrefix(string(signed), empty) {
		t.Fatalf("size %d, %s", size, signed)
	}
	if onDisk := contents(t, dir)["checkpoint"]; onDisk != string(signed) {
		t.Fatal(onDisk)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	stranger, _, err := note.GenerateKey(nil, "dals.other/record")
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _, err := note.GenerateKey(nil, "dals.test/record")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		harm func(*Config, *rowsOf)
		want string
	}{
		"rolled-back registry": {func(_ *Config, s *rowsOf) { s.size.Store(299) }, "checkpoint covers 300 entries, the registry has 299"},
		"another history":      {func(_ *Config, s *rowsOf) { s.change = map[uint64][]byte{3: []byte("x")} }, "the registry's rows have"},
		"another host":         {func(c *Config, _ *rowsOf) { c.Signer = mustSigner(t, stranger) }, `this is "dals.other/record"`},
		"another key":          {func(c *Config, _ *rowsOf) { c.Signer = mustSigner(t, otherKey) }, "not signed by this host's key"},
		"no note": {func(c *Config, _ *rowsOf) {
			if err := os.WriteFile(filepath.Join(c.Dir, "checkpoint"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "read checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, s := publish(t, 300)
			before := contents(t, dir)
			cfg := config(t, dir, s)
			c.harm(&cfg, s)
			_, err := Open(t.Context(), cfg)
			if !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(err.Error(), c.want) || !strings.Contains(worker.HintOf(err), "recover") {
				t.Errorf("%v, hint %q", err, worker.HintOf(err))
			}
			// What is there is evidence.
			if after := contents(t, dir); name != "no note" && len(after) != len(before) {
				t.Errorf("%d files before, %d after", len(before), len(after))
			}
		})
	}
}

func mustSigner(t *testing.T, key string) note.Signer {
	t.Helper()
	s, err := note.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestViewIsMadeAgain(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 600)
	want := contents(t, dir)
	for _, lost := range []string{"checkpoint", "."} {
		if err := os.RemoveAll(filepath.Join(dir, lost)); lost != "." && err != nil {
			t.Fatal(err)
		}
		if lost == "." {
			dir = t.TempDir()
		}
		publishIn(t, dir, s)
		if got := contents(t, dir); len(got) != len(want) || got["checkpoint"] != want["checkpoint"] {
			t.Errorf("%s lost: %d files, want %d", lost, len(got), len(want))
		}
	}
}

func TestShrinkingSourceEndsRun(t *testing.T) {
	t.Parallel()
	s := newRows(10)
	l := openLog(t, t.TempDir(), s)
	l.pause = 0
	done := make(chan error)
	go func() { done <- l.Run(t.Context()) }()
	waitFor(t, l, 9)
	s.size.Store(8)
	s.grow(1)
	if err := <-done; !errors.Is(err, worker.ErrCorrupt) || worker.HintOf(err) == "" {
		t.Error(err)
	}
}

// TestDiskFails has something in the way of the tiles: the log falls behind,
// says so once, and catches up without a restart.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	dir, s := t.TempDir(), newRows(0)
	cfg := config(t, dir, s)
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &said, Level: hclog.Info})
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.retry = 10 * time.Millisecond
	inTheWay := filepath.Join(dir, "tile")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := start(t, l)
	s.grow(300)
	for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Millisecond) {
		if n, age := l.Lag(); n == 300 && age > time.Second {
			break
		}
		if time.Now().After(deadline) {
			n, age := l.Lag()
			t.Fatalf("lag of %d, %s", n, age)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := l.WaitFor(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited for an entry that is not published: %v", err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	waitFor(t, l, 299)
	s.grow(100)
	waitFor(t, l, 399)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n, age := l.Lag(); n != 0 || age != 0 {
		t.Errorf("lag of %d, %s after all", n, age)
	}
	if strings.Count(said.String(), "cannot publish") != 1 || strings.Count(said.String(), "again") != 1 {
		t.Errorf("logged: %s", said.String())
	}
	if r := verify(t, dir, s); len(r.Problems)+len(r.Leftovers) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestTwoWritersTakeTurns(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 5)
	unlock, err := folder(dir).lock(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, config(t, dir, s)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("opened under a reader: %v", err)
	}
	if _, err := Verify(t.Context(), dir, s, verifier(t)); err != nil {
		t.Errorf("a second reader: %v", err)
	}
	unlock()
	openLog(t, dir, s)
}

func BenchmarkPublish(b *testing.B) {
	const entries = 100_000
	for b.Loop() {
		publish(b, entries)
	}
	b.ReportMetric(float64(entries*b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkOpen(b *testing.B) {
	dir, s := publish(b, 100_000)
	for b.Loop() {
		openLog(b, dir, s)
	}
}

// BenchmarkPublishOne is one checkpoint for one entry.
func BenchmarkPublishOne(b *testing.B) {
	s := newRows(10_000)
	l := openLog(b, b.TempDir(), s)
	l.pause = 0
	stop := start(b, l)
	waitFor(b, l, 9_999)
	for b.Loop() {
		s.grow(1)
		waitFor(b, l, s.size.Load()-1)
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}
