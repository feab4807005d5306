package door

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
)

// TestEgress: bytes go both ways, what was sent with the question too, each side
// may end its own first, and the record has it all.
func TestEgress(t *testing.T) {
	t.Parallel()
	address := serve(t, shout)
	r := newRig(t, "egress:"+address)
	c, from, code := r.ask(address, "early, ")
	if code != "" {
		t.Fatal(code)
	}
	long := strings.Repeat("and late. ", 30_000)
	if _, err := io.WriteString(c, long); err != nil {
		t.Fatal(err)
	}
	if open := r.recorded(record.EgressOpened)[0]; open.Egress.Address != address || open.Egress.Host != "127.0.0.1" || open.Worker.Serial != nora {
		t.Errorf("%+v", open)
	}
	if r.doors.Traffic(nora).Open != 1 {
		t.Errorf("%+v", r.doors.Traffic(nora))
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(from)
	if want := strings.ToUpper("early, " + long); err != nil || string(got) != want {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	end := r.recorded(record.EgressClosed)[0].Egress
	n := uint64(len(got))
	if end.Sent != n || end.Received != n || end.Outcome != "closed" || end.Address != address || end.OpenedIndex == nil || *end.OpenedIndex != 0 {
		t.Errorf("%+v", end)
	}
	if got := r.doors.Traffic(nora); got.Sent != n || got.Received != n || got.Connections != 1 {
		t.Errorf("%+v", got)
	}
}

// TestNotGranted: only the very words of a grant let a worker out.
func TestNotGranted(t *testing.T) {
	t.Parallel()
	address := serve(t, shout)
	host, port, _ := net.SplitHostPort(address)
	r := newRig(t, "egress:"+address, "egress:example.org:443")
	for _, target := range []string{
		"127.0.0.1:1", "127.0.0.2:" + port, "localhost:" + port, "[::1]:" + port, "0.0.0.0:" + port, "0x7f000001:" + port, "127.1:" + port, host,
		"example.org:80", "Example.org:443", "example.org.:443", "www.example.org:443", "example.org", "[::ffff:127.0.0.1]:" + port,
		"127.0.0.1:0" + port, strings.Repeat("a", 2000) + ":443",
	} {
		if _, _, code := r.ask(target, ""); code != EgressNotGranted {
			t.Errorf("%.80s: %q", target, code)
		}
	}
	if took := r.took(); len(took) != 0 {
		t.Errorf("dialled %q", took)
	}
	r.doors.summarize(t.Context())
	said := r.recorded(record.EgressRefused)
	if len(said) != 1 || said[0].Refusal.Count != 16 || said[0].Refusal.Code != EgressNotGranted || said[0].Worker.Serial != nora || !strings.Contains(said[0].Refusal.Reason, "127.0.0.1:1") {
		t.Errorf("%+v", said)
	}
}

// TestNoOtherRequests: a door is no web server.
func TestNoOtherRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, "egress:example.org:443")
	for _, request := range []string{
		"GET http://example.org:443/ HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
		"POST /calls HTTP/1.1\r\nHost: example.org:443\r\nContent-Length: 0\r\n\r\n",
		"CONNECT example.org:443 HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 5000) + "\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
	} {
		c := r.knock()
		_, _ = io.WriteString(c, request)
		answer, _ := io.ReadAll(io.LimitReader(c, 4096))
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) {
			t.Errorf("%.40q: %.80q", request, answer)
		}
	}
}

// TestRefusedAddresses: a name that leads to the host's own networks leads
// nowhere.
func TestRefusedAddresses(t *testing.T) {
	t.Parallel()
	r := newRig(t, "egress:example.org:443")
	var answer []netip.Addr
	server := &names{answer: func(string) []netip.Addr { return answer }}
	r.doors.Resolver = server.resolver(t)
	for _, addr := range []string{
		"127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
		"0.0.0.0", "0.1.2.3", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "100::1", "::7f00:1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
		"2001::1", "2001:0:7f00:1::", "2001:db8::1", "3fff::1", "5f00::1",
	} {
		server.mu.Lock()
		answer = []netip.Addr{netip.MustParseAddr(addr)}
		server.mu.Unlock()
		if _, _, code := r.ask("example.org:443", ""); code != EgressAddressRefused {
			t.Errorf("%s: %q", addr, code)
		}
	}
	server.mu.Lock()
	answer = nil
	server.mu.Unlock()
	if _, _, code := r.ask("example.org:443", ""); code != EgressUnresolved {
		t.Errorf("of no such name: %q", code)
	}
	if took := r.took(); len(took) != 0 {
		t.Errorf("dialled %q", took)
	}
}

// TestNames: what is dialled is what was looked at, and nothing else of the name.
func TestNames(t *testing.T) {
	t.Parallel()
	r := newRig(t, "egress:example.org:443")
	r.to = serve(t, shout)
	server := &names{answer: func(string) []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("93.184.216.34"), netip.MustParseAddr("::1")}
	}}
	r.doors.Resolver = server.resolver(t)
	c, _, code := r.ask("example.org:443", "")
	if took := r.took(); code != "" || !slices.Equal(took, []string{"93.184.216.34:443"}) {
		t.Fatalf("%q, dialled %q", code, took)
	}
	_ = c.Close()
	if end := r.recorded(record.EgressClosed)[0].Egress; end.Host != "example.org" || end.Address != "93.184.216.34:443" {
		t.Errorf("%+v", end)
	}
}

// TestRebinding: a name that is public when it is looked at and private a moment
// later never leads to the private address: it is asked for once.
func TestRebinding(t *testing.T) {
	t.Parallel()
	r := newRig(t, "egress:rebind.example:80")
	r.to = serve(t, shout)
	asked := 0
	server := &names{}
	server.answer = func(string) []netip.Addr {
		if asked++; asked <= 4 { // two types, and each answer is made twice
			return []netip.Addr{netip.MustParseAddr("93.184.216.34")}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	r.doors.Resolver = server.resolver(t)
	c, _, code := r.ask("rebind.example:80", "")
	if code != "" {
		t.Fatal(code)
	}
	_ = c.Close()
	server.mu.Lock()
	if got := fmt.Sprint(server.asked); got != "map[rebind.example. TypeA:1 rebind.example. TypeAAAA:1]" {
		t.Errorf("asked %s", got)
	}
	asked = 4
	server.mu.Unlock()
	if _, _, code := r.ask("rebind.example:80", ""); code != EgressAddressRefused {
		t.Errorf("once it is rebound: %q", code)
	}
	if took := r.took(); !slices.Equal(took, []string{"93.184.216.34:80"}) {
		t.Errorf("dialled %q", took)
	}
}

// TestPublic: what may be dialled for a name, at the edges of what may not.
func TestPublic(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{
		"1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "172.15.255.255",
		"172.32.0.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700::1111", "2a00::1", "2001:4860:4860::8888",
	} {
		if !isPublic(netip.MustParseAddr(addr)) {
			t.Errorf("%s is refused", addr)
		}
	}
	for _, addr := range []netip.Addr{{}, netip.MustParseAddr("::ffff:8.8.8.8"), netip.MustParseAddr("2606:4700::1111%eth0")} {
		if isPublic(addr) {
			t.Errorf("%s is taken", addr)
		}
	}
}

// TestUnreachable: where nobody listens the worker is told so.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	r := newRig(t, "egress:"+l.Addr().String())
	if _, _, code := r.ask(l.Addr().String(), ""); code != EgressUnreachable {
		t.Errorf("%q", code)
	}
}

// TestUnrecorded: what cannot be recorded does not happen.
func TestUnrecorded(t *testing.T) {
	t.Parallel()
	got := make(chan int, 1)
	address := serve(t, func(c *net.TCPConn) {
		text, _ := io.ReadAll(c)
		got <- len(text)
	})
	r := newRig(t, "egress:"+address)
	r.mu.Lock()
	r.broken = errBroken
	r.mu.Unlock()
	if _, _, code := r.ask(address, "secret"); code != EgressNotRecorded {
		t.Errorf("%q", code)
	}
	if n := <-got; n != 0 {
		t.Errorf("%d bytes went out", n)
	}
}

// TestRefusalsUnrecorded: what cannot be told of now is told of with the next.
func TestRefusalsUnrecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, "egress:127.0.0.1:1")
	for i, broken := range []error{errBroken, nil} {
		r.mu.Lock()
		r.broken = broken
		r.mu.Unlock()
		if _, _, code := r.ask(fmt.Sprintf("127.0.0.1:%d", i+2), ""); code != EgressNotGranted {
			t.Errorf("%q", code)
		}
		r.doors.summarize(t.Context())
	}
	if said := r.recorded(record.EgressRefused); len(said) != 1 || said[0].Refusal.Count != 2 || !strings.Contains(said[0].Refusal.Reason, "127.0.0.1:2") {
		t.Errorf("%+v", said)
	}
}

// TestIdle: who says nothing for long is hung up on.
func TestIdle(t *testing.T) {
	t.Parallel()
	address := serve(t, hold)
	r := newRig(t, "egress:"+address)
	r.doors.idle = 50 * time.Millisecond
	_, from, code := r.ask(address, "")
	if code != "" {
		t.Fatal(code)
	}
	if _, err := from.ReadByte(); err == nil {
		t.Error("it still answers")
	}
	if end := r.recorded(record.EgressClosed)[0].Egress; end.Outcome != "idle" {
		t.Errorf("%+v", end)
	}
}

// TestAborted: a side that breaks off is told of, and takes the other with it.
func TestAborted(t *testing.T) {
	t.Parallel()
	address := serve(t, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	r := newRig(t, "egress:"+address)
	_, from, code := r.ask(address, "x")
	if code != "" {
		t.Fatal(code)
	}
	if _, err := from.ReadByte(); err == nil {
		t.Error("it still answers")
	}
	if end := r.recorded(record.EgressClosed)[0].Egress; end.Outcome != "aborted" {
		t.Errorf("%+v", end)
	}
}

// TestTooMany: one worker has so many connections and no more, and a place that
// is free again is.
func TestTooMany(t *testing.T) {
	t.Parallel()
	address := serve(t, hold)
	r := newRig(t, "egress:"+address)
	var open []net.Conn
	for range maxConnections {
		c, _, code := r.ask(address, "")
		if code != "" {
			t.Fatal(code)
		}
		open = append(open, c)
	}
	if n, err := r.knock().Read(make([]byte, 1)); err == nil {
		t.Errorf("one more got %d bytes", n)
	}
	_ = open[0].Close()
	r.recorded(record.EgressClosed)
	for end := time.Now().Add(patience); r.doors.accepted.Load() == maxConnections && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if _, _, code := r.ask(address, ""); code != "" {
		t.Errorf("after one has gone: %s", code)
	}
	for _, c := range open {
		_ = c.Close()
	}
}

// TestRate: a worker that opens and closes without end fills no record.
func TestRate(t *testing.T) {
	t.Parallel()
	address := serve(t, hold)
	r := newRig(t, "egress:"+address)
	limited, began := 0, time.Now()
	for range openBurst + 60 {
		c, _, code := r.ask(address, "")
		if code == EgressRateLimited {
			limited++
		} else if code != "" {
			t.Fatal(code)
		}
		_ = c.Close()
	}
	most := openBurst + openRate*time.Since(began).Seconds() + 1
	if n := openBurst + 60 - limited; float64(n) > most {
		t.Errorf("%d let through, want %.1f at most", n, most)
	}
	if limited > 0 {
		r.doors.summarize(t.Context())
		if said := r.recorded(record.EgressRefused); len(said) != 1 || said[0].Refusal.Count != uint64(limited) {
			t.Errorf("%d limited, said %+v", limited, said)
		}
	}
}

// TestShut: with its door a worker's connections end, and that is recorded
// before Shut returns. Opened again it works again, on the same folder.
func TestShut(t *testing.T) {
	t.Parallel()
	address := serve(t, hold)
	r := newRig(t, "egress:"+address)
	_, from, code := r.ask(address, "")
	if code != "" {
		t.Fatal(code)
	}
	half := r.knock()                    // says nothing yet
	r.open(r.worker("egress:1.1.1.1:1")) // it is open: nothing changes
	if err := r.doors.Shut(nora); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	last := r.entries[len(r.entries)-1]
	r.mu.Unlock()
	if last.Kind != record.EgressClosed || last.Egress.Outcome != "cut" {
		t.Errorf("%+v", last)
	}
	for _, c := range []io.Reader{from, half} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("it still answers")
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "door", "door.sock")); !os.IsNotExist(err) {
		t.Errorf("socket: %v", err)
	}
	r.open(r.worker("egress:" + address))
	if _, _, code := r.ask(address, ""); code != "" {
		t.Errorf("again: %s", code)
	}
	if got := r.doors.Traffic(nora).Connections; got != 2 {
		t.Errorf("%d connections", got)
	}
}

// TestLeftSocket: what a host that was killed has left is in nobody's way.
func TestLeftSocket(t *testing.T) {
	t.Parallel()
	address := serve(t, hold)
	r := newRig(t, "egress:"+address)
	other := New(Config{Recorder: r, Logger: r.doors.Logger})
	defer other.Close()
	if err := other.Open(r.worker("egress:"+address), r.dir); err != nil { // while the first still has its own
		t.Fatal(err)
	}
	if _, _, code := r.ask(address, ""); code != "" {
		t.Error(code)
	}
	if other.Traffic(nora).Connections != 1 {
		t.Error("the old socket answers")
	}
}

// TestStrangers: a door is for its worker's uid, whoever else gets to it.
func TestStrangers(t *testing.T) {
	t.Parallel()
	address := serve(t, hold)
	r := newRig(t)
	w := r.worker("egress:" + address)
	w.UID = os.Geteuid() + 70_000
	if os.Geteuid() != 0 {
		t.Fatal("this test gives files to other users: run it as root")
	}
	r.open(w)
	if n, err := r.knock().Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes", n)
	}
	info, err := os.Stat(filepath.Join(r.dir, "door", "door.sock"))
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestNoDoor: who was granted nothing has none.
func TestNoDoor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := os.Stat(filepath.Join(r.dir, "door", "door.sock")); !os.IsNotExist(err) {
		t.Errorf("socket: %v", err)
	}
	if err := r.doors.Shut(nora); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(r.dir, "door")); err != nil {
		t.Fatal(err)
	}
	if err := r.doors.Open(r.worker("egress:example.org:443"), r.dir); err == nil {
		t.Error("a door without its folder")
	}
}

// TestRun ends with its context.
func TestRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.doors.Run(ctx); err != nil {
		t.Error(err)
	}
}
