package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// public is what the host takes for an address of the internet.
const public = "93.184.216.34"

// private are addresses in an internet that are not of it.
var private = []string{"127.0.0.1", "127.8.8.8", "10.66.0.1", "172.16.5.4", "192.168.77.1", "169.254.169.254"}

// internet is a network namespace with addresses of the internet and of private
// networks side by side, servers on them, and a DNS server where this machine's
// settings look for one. A host in it is as it is everywhere, but for who answers.
type internet struct {
	t      *testing.T
	here   *os.File // the namespace
	binary string   // of a host in it

	mu    sync.Mutex
	names map[string][]string // where a name is, each time that it is asked for; the last stays
	asked map[string]int      // for IPv4 addresses
}

// newInternet makes one whose names are given: each has one answer or more, of
// addresses with a space between.
func newInternet(t *testing.T, names map[string][]string) *internet {
	t.Helper()
	n := &internet{t: t, names: names, asked: map[string]int{}}
	dns := nameserver()
	err := elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		if n.here, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return addLoopback(append([]string{public, dns}, private...)...)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.here.Close() })
	n.resolve(net.JoinHostPort(dns, "53"))
	n.binary = filepath.Join(t.TempDir(), "dals-host")
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=/proc/%d/fd/%d %s \"$@\"\n", os.Getpid(), n.here.Fd(), filepath.Join(bin, "dals-host"))
	if err := os.WriteFile(n.binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// elsewhere does something in a thread that has entered another network. What
// begins to listen there goes on there.
func elsewhere(enter, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good, unless it is back: then the thread ends with this function
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			if err = enter(); err == nil {
				err = do()
			}
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close()
		}
		done <- err
	}()
	return <-done
}

// inside does something in the network.
func (n *internet) inside(do func() error) {
	n.t.Helper()
	if err := elsewhere(func() error { return unix.Setns(int(n.here.Fd()), unix.CLONE_NEWNET) }, do); err != nil {
		n.t.Fatal(err)
	}
}

// passing counts what has passed a listener.
type passing struct {
	net.Listener
	connections, in, out atomic.Uint64
}

func (p *passing) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	p.connections.Add(1)
	return counted{c, p}, nil
}

// counted is a connection, without the short ways that would pass its count.
type counted struct {
	net.Conn
	*passing
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.in.Add(uint64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.out.Add(uint64(n))
	return n, err
}

func (c counted) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// Close closes the connection, not its listener.
func (c counted) Close() error { return c.Conn.Close() }

// listen listens in the network until the test ends.
func (n *internet) listen(address string) *passing {
	n.t.Helper()
	p := &passing{}
	n.inside(func() (err error) {
		p.Listener, err = net.Listen("tcp", address)
		return err
	})
	n.t.Cleanup(func() { _ = p.Close() })
	return p
}

// web serves HTTP at an address.
func (n *internet) web(address string, answer http.HandlerFunc) *passing {
	n.t.Helper()
	p := n.listen(address)
	server := &http.Server{Handler: answer, ReadHeaderTimeout: patience}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(p) })
	n.t.Cleanup(func() { _ = server.Close(); served.Wait() })
	return p
}

// serve does something with each connection to an address, and closes it then.
func (n *internet) serve(address string, do func(counted)) *passing {
	n.t.Helper()
	p := n.listen(address)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := p.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				if c.SetDeadline(time.Now().Add(patience)) == nil {
					do(c.(counted))
				}
			})
		}
	})
	n.t.Cleanup(func() { _ = p.Close(); served.Wait() })
	return p
}

// traps listen on a port of the addresses that no name may lead to.
func (n *internet) traps(port string) (all []*passing) {
	n.t.Helper()
	for _, addr := range private {
		all = append(all, n.serve(net.JoinHostPort(addr, port), func(counted) {}))
	}
	return all
}

// resolve answers questions for names.
func (n *internet) resolve(address string) {
	n.t.Helper()
	var c net.PacketConn
	n.inside(func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	})
	var served sync.WaitGroup
	served.Go(func() {
		buffer := make([]byte, 1500)
		for {
			size, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			if reply, err := n.reply(buffer[:size]); err == nil {
				_, _ = c.WriteTo(reply, from)
			}
		}
	})
	n.t.Cleanup(func() { _ = c.Close(); served.Wait() })
}

func (n *internet) reply(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	if len(m.Questions) != 1 {
		return nil, errors.New("not one question")
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	addrs, known := n.look(strings.TrimSuffix(q.Name.String(), "."), q.Type)
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET}
	for _, addr := range addrs {
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return m.Pack()
}

// look is where a name is now. Each question for its IPv4 addresses is another
// moment; those for the others are asked beside it.
func (n *internet) look(name string, kind dnsmessage.Type) (addrs []netip.Addr, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answers, known := n.names[name]
	if !known {
		return nil, false
	}
	now := answers[min(n.asked[name], len(answers)-1)]
	if kind == dnsmessage.TypeA {
		n.asked[name]++
	}
	for word := range strings.FieldsSeq(now) {
		addrs = append(addrs, netip.MustParseAddr(word))
	}
	return addrs, true
}

// questions is how often the IPv4 addresses of a name were asked for.
func (n *internet) questions(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[name]
}

// nameserver is the IPv4 address that this machine asks for names.
func nameserver() string {
	text, _ := os.ReadFile("/etc/resolv.conf") // without it the resolver asks its own machine, too
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "nameserver" {
			if addr, err := netip.ParseAddr(words[1]); err == nil && addr.Is4() {
				return words[1]
			}
		}
	}
	return "127.0.0.1"
}

// addLoopback gives addresses to the loopback interface of this thread's network.
func addLoopback(addrs ...string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	for i, addr := range addrs {
		ip := netip.MustParseAddr(addr)
		if ip.IsLoopback() {
			continue
		}
		for _, set := range []struct {
			request uint
			value   netip.Addr
		}{{unix.SIOCSIFADDR, ip}, {unix.SIOCSIFNETMASK, netip.MustParseAddr("255.255.255.255")}} {
			r, err := unix.NewIfreq(fmt.Sprintf("lo:%d", i))
			if err != nil {
				return err
			}
			if err := errors.Join(r.SetInet4Addr(set.value.AsSlice()), unix.IoctlIfreq(fd, set.request, r)); err != nil {
				return fmt.Errorf("add address %s: %w", addr, err)
			}
		}
	}
	return nil
}
