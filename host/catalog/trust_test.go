package catalog

import (
	"testing"
	"time"
)

func TestDefaultVersion(t *testing.T) {
	t.Parallel()
	const root, host = 0, 1000
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	claims := []Claim{ // in no order
		{Type: "goat", Version: "9.0.0", Family: "GT", Digest: "d", OwnerUID: host, At: at(4)},
		{Type: "goat", Version: "1.2.0", Family: "GT", Digest: "a", OwnerUID: root, At: at(1)},
		{Type: "goat", Version: "1.10.0", Family: "GT", Digest: "b", OwnerUID: root, At: at(2)},
		{Type: "goat", Version: "1.10.0-rc.1", Family: "GT", Digest: "c", OwnerUID: root, At: at(3)},
	}
	b := newBook(claims)
	entries := func(versions ...string) []Entry {
		var list []Entry
		for _, v := range versions {
			list = append(list, Entry{Type: "goat", Version: v})
		}
		return list
	}
	for _, c := range []struct {
		entries []Entry
		want    string
	}{
		{entries("1.2.0", "1.10.0-rc.1", "1.10.0", "9.0.0"), "1.10.0"},
		{entries("1.2.0", "1.10.0-rc.1", "9.0.0"), "1.10.0-rc.1"},
		{entries("1.2.0"), "1.2.0"},
		// When the first owner's files are gone, another's does not step in.
		{entries("9.0.0"), ""},
		{[]Entry{{Type: "goat", Version: "1.2.0"}, {Type: "goat", Version: "1.10.0", Draining: true}}, "1.2.0"},
	} {
		b.markDefaults(c.entries)
		got := ""
		for _, e := range c.entries {
			if e.Default {
				got += e.Version
			}
		}
		if got != c.want {
			t.Errorf("of %v the default is %q, want %q", c.entries, got, c.want)
		}
	}
}
