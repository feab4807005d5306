package door

import (
	"bufio"
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
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/wire"
)

// A server lingers for half a second where it has refused a request that was not
// read to its end; the connection is closed by then.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

const nora = worker.Serial("DMN-TP-1-deadbeef-00001")

// patience is how long anything may take here before a test gives up.
const patience = time.Minute

// rig is one open door of a worker that runs as this process does.
type rig struct {
	t     *testing.T
	doors *Doors
	dir   string

	mu      sync.Mutex
	entries []record.Entry
	broken  error // what the record says
	dialled []string
	to      string // where every dialled address leads, if not to itself
}

func newRig(t *testing.T, grants ...string) *rig {
	t.Helper()
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), strings.Repeat("long", 30))} // longer than the address of a socket
	if err := os.MkdirAll(filepath.Join(r.dir, "door"), 0o750); err != nil {
		t.Fatal(err)
	}
	r.doors = New(Config{Recorder: r, Resolver: nil, Logger: hclog.NewNullLogger()})
	r.doors.dial = r.dial
	r.open(r.worker(grants...))
	t.Cleanup(func() {
		if err := r.doors.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) worker(grants ...string) worker.Worker {
	return worker.Worker{Serial: nora, Name: "nora", Type: "template", UID: os.Geteuid(), Grants: grants}
}

func (r *rig) open(w worker.Worker) {
	r.t.Helper()
	if err := r.doors.Open(w, r.dir); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) Record(_ context.Context, e record.Entry) (uint64, error) {
	if _, err := e.Encode(); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return 0, r.broken
	}
	r.entries = append(r.entries, e)
	return uint64(len(r.entries) - 1), nil
}

func (r *rig) dial(ctx context.Context, network, address string) (net.Conn, error) {
	r.mu.Lock()
	r.dialled = append(r.dialled, address)
	to := r.to
	r.mu.Unlock()
	if to == "" {
		to = address
	}
	return (&net.Dialer{}).DialContext(ctx, network, to)
}

// took are the addresses dialled so far.
func (r *rig) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.dialled...)
}

// recorded waits until the record has entries of a kind.
func (r *rig) recorded(kind record.Kind) []record.Entry {
	r.t.Helper()
	var found []record.Entry
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		found = nil
		r.mu.Lock()
		for _, e := range r.entries {
			if e.Kind == kind {
				found = append(found, e)
			}
		}
		r.mu.Unlock()
		if len(found) > 0 {
			return found
		}
	}
	r.t.Fatalf("no %s recorded", kind)
	return nil
}

// knock connects to the door as the worker does.
func (r *rig) knock() *net.UnixConn {
	r.t.Helper()
	folder, err := os.Open(filepath.Join(r.dir, "door"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer folder.Close()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(wire.Door)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// ask asks for a connection and says what the door answers: its code, or "".
func (r *rig) ask(target, early string) (c *net.UnixConn, from *bufio.Reader, code string) {
	r.t.Helper()
	c = r.knock()
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n%s", target, target, early); err != nil {
		r.t.Fatal(err)
	}
	from = bufio.NewReader(c)
	resp, err := http.ReadResponse(from, &http.Request{Method: http.MethodConnect})
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		return c, from, ""
	}
	defer resp.Body.Close()
	why, _ := io.ReadAll(resp.Body)
	if code = resp.Header.Get(wire.DoorCode); code == "" || len(why) == 0 {
		r.t.Errorf("%s: %s without a code or reason: %q", target, resp.Status, why)
	}
	return c, from, code
}

// serve is a server of this machine that does something with each connection.
func serve(t *testing.T, do func(*net.TCPConn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); do(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().String()
}

// shout answers, once it has all, with all of it in capitals.
func shout(c *net.TCPConn) {
	_ = c.SetDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(c)
	if err == nil {
		_, _ = io.WriteString(c, strings.ToUpper(string(text)))
	}
}

// hold keeps a connection until the other side goes.
func hold(c *net.TCPConn) {
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.Copy(io.Discard, c)
}

// names is a DNS server whose answers a test decides.
type names struct {
	answer func(name string) []netip.Addr
	mu     sync.Mutex
	asked  map[string]int // by name and type
}

// resolver is one that asks nobody else.
func (n *names) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	n.asked = map[string]int{}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { n.serve(c) })
	t.Cleanup(func() { _ = c.Close(); served.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

func (n *names) serve(c net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		size, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:size]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		n.fill(&m)
		if reply, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(reply, from)
		}
	}
}

func (n *names) fill(m *dnsmessage.Message) {
	q := m.Questions[0]
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked[q.Name.String()+" "+q.Type.String()]++
	for _, addr := range n.answer(strings.TrimSuffix(q.Name.String(), ".")) {
		head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET}
		if addr.Is4() && q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}})
		}
		if addr.Is6() && q.Type == dnsmessage.TypeAAAA {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	if len(m.Answers) == 0 && len(n.answer(strings.TrimSuffix(q.Name.String(), "."))) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
}

var errBroken = errors.New("no space")
