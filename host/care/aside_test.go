package care

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
)

// What a recovery keeps is found again, and nothing else is.
func TestAsides(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for range 3 {
		g.note(record.Entry{Kind: record.Refused, Refusal: &record.RefusalFields{Code: "kind_unknown"}}, nil)
	}
	g.close()
	g.damage(t, damages["garbage"])
	g.must(os.WriteFile(g.at("registry.db-wal"), []byte("a log"), 0o600))
	tiles, err := filepath.Glob(g.at("record/tile/0/000.p/*"))
	g.must(err)
	g.must(os.Remove(tiles[0]))
	before := now()
	found, err := g.recover(nil)
	g.must(err)
	for _, name := range []string{"registry.db.corrupt-", "registry.db.corrupt-yesterday", "registry.db.corrupt-20260101T000000.000Z.mine", "record.damaged-", "record.bak"} {
		g.must(os.WriteFile(g.at(name), nil, 0o600))
	}
	asides, err := Asides(g.at("registry.db"), g.at("record"))
	g.must(err)
	var names []string
	for _, a := range asides {
		names = append(names, filepath.Base(a.Path))
		if a.At.Before(before) || a.At.After(time.Now()) || a.Bytes == 0 {
			t.Errorf("%+v, recovered after %s", a, before)
		}
	}
	slices.Sort(names)
	slices.Sort(found.Kept)
	if len(names) < 3 || !slices.Equal(names, found.Kept) {
		t.Errorf("found %s, kept %s", strings.Join(names, " "), strings.Join(found.Kept, " "))
	}
}
