package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/wire"
)

// doorman is a host's side of a door: it lets good.example:80 through to a
// function, and refuses all else.
type doorman struct {
	server  http.Server
	through func(net.Conn)
	running sync.WaitGroup
}

func (d *doorman) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || r.Host != "good.example:80" {
		w.Header().Set(wire.DoorCode, "egress_not_granted")
		http.Error(w, "no way", http.StatusForbidden)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 Connected\r\n\r\nwelcome ") // and more in one piece
	d.through(conn)
}

func (d *doorman) open(t *testing.T, dir string) {
	t.Helper()
	_ = os.Mkdir(filepath.Join(dir, "door"), 0o700)
	l, err := net.Listen("unix", filepath.Join(dir, wire.Door))
	if err != nil {
		t.Fatal(err)
	}
	d.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.running.Add(1)
		defer d.running.Done()
		d.ServeHTTP(w, r)
	})
	done := make(chan struct{})
	go func() { defer close(done); _ = d.server.Serve(l) }()
	t.Cleanup(func() { _ = d.server.Close(); <-done; d.running.Wait() })
}

func granted(t *testing.T, dir string) *Worker {
	t.Helper()
	caps, err := capability.Set([]string{"egress:good.example:80", "egress:bad.example:80"})
	if err != nil {
		t.Fatal(err)
	}
	return &Worker{dir: dir, grants: caps, log: hclog.NewNullLogger()}
}

// shoutBack answers, once it has all, with all of it in capitals.
func shoutBack(c net.Conn) {
	text, err := io.ReadAll(c)
	if err == nil {
		_, _ = io.WriteString(c, strings.ToUpper(string(text)))
	}
}

func TestDialContext(t *testing.T) {
	dir := t.TempDir()
	w := granted(t, dir)
	opened := time.AfterFunc(50*time.Millisecond, func() { // the host is away for a moment
		(&doorman{through: shoutBack}).open(t, dir)
	})
	defer opened.Stop()
	c, err := w.DialContext(t.Context(), "tcp", "good.example:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "welcome HELLO" {
		t.Errorf("%q, %v", got, err)
	}
	_, err = w.DialContext(t.Context(), "tcp", "bad.example:80")
	if !errors.Is(err, ErrNotGranted) || !strings.Contains(err.Error(), "no way (egress_not_granted)") {
		t.Errorf("refused: %v", err)
	}
	if _, err := w.DialContext(t.Context(), "udp", "good.example:80"); err == nil {
		t.Error("udp was taken")
	}
}

func TestDialWithoutGrants(t *testing.T) {
	t.Parallel()
	w := &Worker{dir: t.TempDir()}
	if _, err := w.DialContext(t.Context(), "tcp", "good.example:80"); !errors.Is(err, ErrNotGranted) {
		t.Errorf("%v", err)
	}
	w = granted(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := w.DialContext(ctx, "tcp", "good.example:80"); err == nil || !strings.Contains(err.Error(), "the host is away") {
		t.Errorf("without a host: %v", err)
	}
}

// TestBridges: who connects to the alias of what was granted talks to it; each
// side may end its own first, and what is refused is reset.
func TestBridges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	(&doorman{through: shoutBack}).open(t, dir)
	w := granted(t, dir)
	b := &bridges{worker: w}
	b.ctx, b.cancel = context.WithCancel(t.Context())
	loopback := netip.AddrPortFrom(netip.MustParseAddr("127.0.1.9"), 0)
	for _, g := range w.grants {
		if err := b.open(capability.Alias{Capability: g, Listen: loopback}); err != nil {
			t.Fatal(err)
		}
	}
	bad, good := b.listeners[0].Addr().String(), b.listeners[1].Addr().String() // in the order of Set
	c := dialTCP(t, good)
	if _, err := fmt.Fprint(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "welcome HELLO" {
		t.Errorf("%q, %v", got, err)
	}
	if refused, err := net.Dial("tcp", bad); err == nil { // or it is reset as soon as it is there
		if n, err := refused.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("refused: %d bytes, %v", n, err)
		}
		_ = refused.Close()
	}
	last := dialTCP(t, good)
	if _, err := last.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b.close() // with a connection open
	if _, err := io.ReadAll(last); err == nil {
		t.Error("it ended in good order")
	}
}

func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}
