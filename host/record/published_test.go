package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// readPublished collects the sound entries.
func readPublished(t *testing.T, p *Published) (entries [][]byte) {
	t.Helper()
	for g, err := range p.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if g.First != uint64(len(entries)) {
			t.Fatalf("group at %d, want %d", g.First, len(entries))
		}
		entries = append(entries, g.Entries...)
	}
	return entries
}

func TestPublishedGivesTheRowsBack(t *testing.T) {
	t.Parallel()
	for _, size := range []uint64{0, 1, 255, 256, 257, 1000} {
		dir, s := publish(t, size)
		p, err := OpenPublished(t.Context(), dir, verifier(t))
		if err != nil {
			t.Fatal(err)
		}
		if p.Size != size || p.Sound != size || len(p.Damage) > 0 {
			t.Fatalf("size %d, sound %d, damage %q, want %d", p.Size, p.Sound, p.Damage, size)
		}
		entries := readPublished(t, p)
		if uint64(len(entries)) != size {
			t.Fatalf("%d entries, want %d", len(entries), size)
		}
		for i, e := range entries {
			if string(e) != string(s.row(uint64(i))) {
				t.Fatalf("entry %d is %s", i, e)
			}
		}
	}
}

func TestPublishedDamage(t *testing.T) {
	t.Parallel()
	const size = 1000 // three full bundles and one of 232
	full, last := "tile/entries/001", "tile/entries/003.p/232"
	flip := func(at int) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[(at+len(data))%len(data)] ^= 1
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		file   string
		also   string
		damage func(*testing.T, string)
		sound  uint64
		says   string
	}{
		"an entry":                  {file: full, damage: flip(100), sound: 257, says: "entry 257"},
		"the last byte of a bundle": {file: full, damage: flip(-1), sound: 511, says: "entry 511"},
		"a bundle's length":         {file: full, damage: flip(1), sound: 256, says: full},
		"a bundle gone":             {file: full, damage: remove, sound: 256, says: full},
		"the last bundle gone":      {file: last, damage: remove, sound: 768, says: last},
		"a tile":                    {file: "tile/0/001", damage: flip(40), sound: size, says: "tile/0/001"},
		"a tile gone":               {file: "tile/0/001", damage: remove, sound: size, says: "tile/0/001"},
		"two bundles":               {file: full, also: "tile/entries/000", damage: flip(-1), sound: 255, says: "entry 511"},
		"bundle and another tile":   {file: full, also: "tile/0/002", damage: flip(-1), sound: 511, says: "entry 511"},
		"bundle and its tile":       {file: full, also: "tile/0/001", damage: remove, sound: 0, says: "entries from 256 on"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, s := publish(t, size)
			for _, file := range []string{c.file, c.also} {
				if file != "" {
					c.damage(t, filepath.Join(dir, file))
				}
			}
			p, err := OpenPublished(t.Context(), dir, verifier(t))
			if err != nil {
				t.Fatal(err)
			}
			if p.Size != size || p.Sound != c.sound {
				t.Errorf("sound %d of %d, want %d; %q", p.Sound, p.Size, c.sound, p.Damage)
			}
			if c.says != "" && !strings.Contains(strings.Join(p.Damage, "\n"), c.says) {
				t.Errorf("damage %q does not name %q", p.Damage, c.says)
			}
			entries := readPublished(t, p)
			if uint64(len(entries)) != c.sound {
				t.Errorf("%d entries, want %d", len(entries), c.sound)
			}
			for i, e := range entries {
				if string(e) != string(s.row(uint64(i))) {
					t.Fatalf("entry %d is %s", i, e)
				}
			}
		})
	}
}

func TestPublishedNeedsTheCheckpoint(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func([]byte) []byte{
		"gone":          nil,
		"empty":         func([]byte) []byte { return nil },
		"another root":  func(b []byte) []byte { b[len("dals.test/record\n300\n")] ^= 1; return b },
		"another size":  func(b []byte) []byte { return []byte(strings.Replace(string(b), "\n300\n", "\n299\n", 1)) },
		"its signature": func(b []byte) []byte { b[len(b)-10] ^= 1; return b },
	} {
		dir, _ := publish(t, 300)
		path := filepath.Join(dir, "checkpoint")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if spoil == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, spoil(data), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenPublished(t.Context(), dir, verifier(t)); !errors.Is(err, worker.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that changes between the check and the reading is not believed.
func TestPublishedIsCheckedAsItIsRead(t *testing.T) {
	t.Parallel()
	dir, _ := publish(t, 300)
	p, err := OpenPublished(t.Context(), dir, verifier(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tile/entries/000")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[50] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range p.Entries(t.Context()) {
		if !errors.Is(err, worker.ErrCorrupt) {
			t.Fatalf("a changed file was read: %v", err)
		}
	}
}

func TestSupports(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 300)
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(s *rowsOf) error {
		_, err := Supports(t.Context(), s, verifier(t), signed)
		return err
	}
	if err := ask(s); err != nil {
		t.Error(err)
	}
	if err := ask(newRows(400)); err != nil {
		t.Errorf("more rows: %v", err)
	}
	if err := ask(newRows(299)); !errors.Is(err, worker.ErrCorrupt) {
		t.Errorf("a row too few: %v", err)
	}
	changed := newRows(300)
	changed.change = map[uint64][]byte{17: []byte("x")}
	if err := ask(changed); !errors.Is(err, worker.ErrCorrupt) {
		t.Errorf("a changed row: %v", err)
	}
	signed[len(signed)-10] ^= 1
	if err := ask(s); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("a forged checkpoint: %v", err)
	}
}

// A log that is made from rows alone is the log that was.
func TestPublishMakesTheSameFiles(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 777)
	again := t.TempDir()
	if err := openLog(t, again, s).Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	want, got := contents(t, dir), contents(t, again)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s differs", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}
