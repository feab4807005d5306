package capability

import (
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"egress:example.org:443", "egress:xn--bcher-kva.example:1", "egress:db_1.local:65535",
		"egress:10.0.0.1:5432", "egress:127.0.0.1:443", "call:template", "call:a_1", "ingress:hooks", "ingress:a/b.c/d-e_f", "egress:169.254.169.254:80", "egress:[2001:db8::1]:443", "egress:[::1]:8443",
		"mount:/mnt/a", "mount:/mnt/photos-1.x_y", "mount:/mnt/a=/srv#0.0", "mount:/mnt/a=/#1.2", "mount:/mnt/a=/srv/x:ro#1835010.1732233600",
		"mount:/mnt/a=/srv/M%C3%BCnchen%2039%3Aro:ro#18446744073709551615.1", "mount:/mnt/a=/srv/%23%3D%25#1.1",
	} {
		c, err := Parse(text)
		if err != nil || c.String() != text {
			t.Errorf("%s: %+v, %v", text, c, err)
		}
	}
	for text, says := range map[string]string{
		"":                                 "no known kind",
		"egress":                           "egress:HOST:PORT",
		"ingress:":                         "ingress:PATH",
		"ingress:/a":                       "ingress:PATH",
		"ingress:a/":                       "ingress:PATH",
		"ingress:a//b":                     "ingress:PATH",
		"ingress:a/../b":                   "ingress:PATH",
		"ingress:A":                        "ingress:PATH",
		"ingress:a?b":                      "ingress:PATH",
		"ingress:a%2fb":                    "ingress:PATH",
		"call":                             "call:TYPE",
		"call:":                            "call:TYPE",
		"call:Template":                    "call:TYPE",
		"call:a.b":                         "call:TYPE",
		"call:a:b":                         "call:TYPE",
		"gpu":                              "no known kind",
		"mount":                            "mount:/mnt/NAME",
		"mount:":                           "mount:/mnt/NAME",
		"mount:/":                          "mount:/mnt/NAME",
		"mount:data":                       "mount:/mnt/NAME",
		"mount:/data":                      "mount:/mnt/NAME",
		"mount:/worker/certs":              "mount:/mnt/NAME",
		"mount:/mnt":                       "mount:/mnt/NAME",
		"mount:/mnt/":                      "mount:/mnt/NAME",
		"mount:/mnt/.":                     "mount:/mnt/NAME",
		"mount:/mnt/..":                    "mount:/mnt/NAME",
		"mount:/mnt/.ssh":                  "mount:/mnt/NAME",
		"mount:/mnt/a/b":                   "mount:/mnt/NAME",
		"mount:/mnt/a/":                    "mount:/mnt/NAME",
		"mount:/mnt/A":                     "mount:/mnt/NAME",
		"mount:/mnt/a b":                   "mount:/mnt/NAME",
		"mount:/mnt/a:ro":                  "mount:/mnt/NAME",
		"mount:/mnt/a=":                    "no form",
		"mount:/mnt/a=/srv":                "no form",
		"mount:/mnt/a=/srv:ro":             "no form",
		"mount:/mnt/a=/srv#1":              "no form",
		"mount:/mnt/a=/srv#-1.1":           "no form",
		"mount:/mnt/a=/srv#1.1\n":          "no form",
		"mount:/mnt/a=#0.0":                "absolute",
		"mount:/mnt/a=srv#1.1":             "absolute",
		"mount:/mnt/a=/srv/#1.1":           "write the folder as /srv",
		"mount:/mnt/a=/srv/../etc#1.1":     "write the folder as /etc",
		"mount:/mnt/a=/srv%2F..%2Fetc#1.1": "write the folder as /etc",
		"mount:/mnt/a=/s%72v#1.1":          "write it as mount:/mnt/a=/srv#1.1",
		"mount:/mnt/a=/s%c3%bc#1.1":        "write it as mount:/mnt/a=/s%C3%BC#1.1",
		"mount:/mnt/a=/s:ro:ro#1.1":        "write it as mount:/mnt/a=/s%3Aro:ro#1.1",
		"mount:/mnt/a=/s%0A#1.1":           "one line",
		"mount:/mnt/a=/s%00#1.1":           "one line",
		"mount:/mnt/a=/s%FF#1.1":           "one line",
		"mount:/mnt/a=/s%#1.1":             "escape",
		"mount:/mnt/a=/srv#01.1":           "write it as mount:/mnt/a=/srv#1.1",
		"mount:/mnt/a=/srv#18446744073709551616.1":               "out of range",
		"mount:/mnt/a=/" + strings.Repeat("x", 208) + ":ro#1.11": "224 bytes",
		"mount:/mnt/" + strings.Repeat("a", 33):                  "mount:/mnt/NAME",
		"Egress:example.org:443":                                 "no known kind",
		"egress:example.org":                                     "egress:HOST:PORT",
		"egress::443":                                            "neither",
		"egress:example.org:0":                                   "port",
		"egress:example.org:65536":                               "port",
		"egress:example.org:0443":                                "write it as egress:example.org:443",
		"egress:example.org:+443":                                "port",
		"egress:Example.org:443":                                 "lower case",
		"egress:example.org.:443":                                "neither",
		"egress:*.example.org:443":                               "neither",
		"egress:a b:443":                                         "neither",
		"egress:bücher.example:443":                              "neither",
		"egress:-a.org:443":                                      "neither",
		"egress:127.1:443":                                       "some would read it",
		"egress:2130706433:443":                                  "some would read it",
		"egress:0x7f000001:443":                                  "some would read it",
		"egress:1.2.3.0x4:443":                                   "some would read it",
		"egress:010.0.0.1:443":                                   "some would read it",
		"egress:localhost:443":                                   "127.0.0.1",
		"egress:a.localhost:443":                                 "127.0.0.1",
		"egress:0.0.0.0:443":                                     "no address of one machine",
		"egress:255.255.255.255:443":                             "no address of one machine",
		"egress:224.0.0.1:443":                                   "no address of one machine",
		"egress:[::]:443":                                        "no address of one machine",
		"egress:[ff02::1]:443":                                   "no address of one machine",
		"egress:[::ffff:10.0.0.1]:443":                           "write the address as 10.0.0.1",
		"egress:[fe80::1%eth0]:443":                              "zone",
		"egress:2001:db8::1:443":                                 "IPv6",
		"egress:[10.0.0.1]:443":                                  "IPv6",
		"egress:[2001:db8::1:443":                                "IPv6",
		"egress:[2001:DB8::1]:443":                               "write it as egress:[2001:db8::1]:443",
		"egress:" + strings.Repeat("a", 300):                     "more than 256",
		"egress:" + strings.Repeat("a.", 120):                    "egress:HOST:PORT",
		"egress:" + strings.Repeat("a", 64) + ".org:443":         "neither",
	} {
		if c, err := Parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	got, err := Normal([]string{"egress:b.org:1", "egress:a.org:2", "egress:b.org:1"})
	if err != nil || !slices.Equal(got, []string{"egress:a.org:2", "egress:b.org:1"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := Normal(nil); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %q, %v", got, err)
	}
	if _, err := Set([]string{"egress:a.org:1", "root"}); err == nil {
		t.Error("an unknown one was taken")
	}
	var many []string
	for port := range Max + 1 {
		many = append(many, Capability{Kind: Egress, Host: "a.org", Port: uint16(port + 1)}.String())
	}
	if _, err := Set(many); err == nil {
		t.Error("too many were taken")
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	granted, err := Set([]string{
		"egress:b.org:443", "egress:a.org:80", "egress:a.org:443", "egress:127.0.1.1:9", "egress:10.0.0.1:443", "egress:[::1]:8443",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"egress:127.0.1.1:9": "127.0.1.1:9", "egress:[::1]:8443": "[::1]:8443",
		"egress:a.org:443": "127.0.1.2:443", "egress:a.org:80": "127.0.1.2:80", "egress:b.org:443": "127.0.1.3:443",
	}
	aliases := Aliases(granted)
	for _, a := range aliases {
		if want[a.Capability.String()] != a.Listen.String() {
			t.Errorf("%s at %s", a.Capability, a.Listen)
		}
	}
	if len(aliases) != len(want) {
		t.Errorf("%v", aliases)
	}
	if got := string(Hosts(granted)); got != "127.0.0.1 localhost\n::1 localhost\n127.0.1.2 a.org\n127.0.1.3 b.org\n" {
		t.Errorf("%q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"egress:example.org:443", "egress:[2001:db8::1]:443", "egress:10.0.0.1:80", "egress:127.1:1", "egress:[::ffff:1.2.3.4]:1", "egress::",
	} {
		f.Add(seed)
		f.Add("call:" + seed)
		f.Add("ingress:" + seed)
	}
	for _, seed := range []string{"mount:/mnt/a", "mount:/mnt/a=/srv:ro#1.2", "mount:/mnt/a=/%C3%BC%3Aro#1.2", "mount:/mnt/a=/#0.0", "mount:/mnt/a=/..#1.1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(c.String())
		if err != nil || again != c || c.String() != text {
			t.Fatalf("%q is %+v, and that %+v, %v", text, c, again, err)
		}
		if strings.ContainsAny(text, " \t\r\n\x00") || c.Kind != Mount && strings.Contains(text, "#") {
			t.Fatalf("%q would not stay one word of a hosts file", text)
		}
		if c.Kind == Mount && (path.Dir(c.Name) != "/mnt" || path.Clean(c.Name) != c.Name || c != c.Asked() && path.Clean("/"+c.Folder.Source) != c.Folder.Source) {
			t.Fatalf("%q is at %q, of %q", text, c.Name, c.Folder.Source)
		}
		for _, a := range Aliases([]Capability{c}) {
			if !a.Listen.IsValid() || !a.Listen.Addr().IsLoopback() {
				t.Fatalf("%q is listened for at %s", text, a.Listen)
			}
		}
		if addr, err := netip.ParseAddr(c.Host); err == nil && (addr.IsUnspecified() || addr.Is4In6()) {
			t.Fatalf("%q was taken", text)
		}
	})
}
