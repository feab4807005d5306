package capability

import (
	"slices"
	"strings"
	"testing"
)

func TestParseMount(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Capability{
		"/srv/photos:/mnt/photos":    {Kind: Mount, Name: "/mnt/photos", Folder: Folder{Source: "/srv/photos"}},
		"/srv/photos:/mnt/photos:ro": {Kind: Mount, Name: "/mnt/photos", Folder: Folder{Source: "/srv/photos", ReadOnly: true}},
		"/a:b:/mnt/c:/mnt/d:ro":      {Kind: Mount, Name: "/mnt/d", Folder: Folder{Source: "/a:b:/mnt/c", ReadOnly: true}},
		"/Köln 1:ro:/mnt/d":          {Kind: Mount, Name: "/mnt/d", Folder: Folder{Source: "/Köln 1:ro"}},
	} {
		if got, err := ParseMount(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, says := range map[string]string{
		"": "SOURCE:/mnt/NAME", "/srv": "SOURCE:/mnt/NAME", "/srv:ro": "SOURCE:/mnt/NAME", ":/mnt/a": "absolute", "srv:/mnt/a": "absolute",
		"/srv:/data": "/mnt/NAME", "/srv:/mnt/a:rw": "/mnt/NAME", "/srv:/mnt/a:": "/mnt/NAME", "/srv:/mnt/": "/mnt/NAME", "/srv:/mnt/../etc": "/mnt/NAME",
		"/srv/:/mnt/a": "write the folder as /srv", "/a/../b:/mnt/a": "write the folder as /b", "/\x00:/mnt/a": "one line", "/\xff:/mnt/a": "one line",
		strings.Repeat("x", 1000): "SOURCE:/mnt/NAME",
	} {
		if got, err := ParseMount(text); err == nil || !strings.Contains(err.Error(), says) || len(err.Error()) > 600 {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestAsks: a folder that is granted is what was asked for, in its place.
func TestAsks(t *testing.T) {
	t.Parallel()
	asked := []string{"egress:a.org:443", "mount:/mnt/a", "mount:/mnt/b"}
	const granted = "mount:/mnt/a=/srv:ro#1.2"
	for grant, want := range map[string]bool{granted: true, "egress:a.org:443": true, "mount:/mnt/c=/srv#1.2": false, "egress:b.org:443": false, "rubbish": false} {
		if got := Asks(asked, grant); got != want {
			t.Errorf("%s: %t", grant, got)
		}
	}
	if got := NotGranted(asked, []string{granted}); !slices.Equal(got, []string{"egress:a.org:443", "mount:/mnt/b"}) {
		t.Errorf("not granted: %q", got)
	}
	if c, err := ParseAsked(granted); err == nil {
		t.Errorf("a type may ask for %+v", c)
	}
	if c, err := ParseAsked("mount:/mnt/a"); err != nil || c.String() != "mount:/mnt/a" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := Set([]string{granted, "mount:/mnt/a=/etc#1.2"}); err == nil || !strings.Contains(err.Error(), "two folders at /mnt/a") {
		t.Errorf("two at one place: %v", err)
	}
}

func FuzzParseMount(f *testing.F) {
	for _, seed := range []string{"/srv:/mnt/a", "/srv:/mnt/a:ro", "/a:b:/mnt/a", "/ü #:/mnt/a:ro", ":", "/:/mnt/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseMount(text)
		if err != nil {
			return
		}
		c.Folder.Inode, c.Folder.Born = 1, 2
		again, err := Parse(c.String())
		if err != nil && !strings.Contains(err.Error(), "more than") {
			t.Fatalf("%q is %s, and that %v", text, c, err)
		}
		if err == nil && again != c {
			t.Fatalf("%q is %+v, and then %+v", text, c, again)
		}
		if strings.ContainsAny(c.String(), " \t\r\n\x00") {
			t.Fatalf("%q is not one word: %q", text, c)
		}
	})
}
