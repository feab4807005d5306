package sdk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/wire"
)

// ErrNotGranted says that a worker may not do what its code wants to. The reason
// is in the error around it.
var ErrNotGranted = errors.New("not granted")

const (
	// doorPatience is how long a worker waits for its door: there is none while
	// one host has ended and the next has not begun.
	doorPatience = 10 * time.Second
	doorRetry    = 20 * time.Millisecond
	maxDenial    = 4 << 10 // bytes of a reason
)

// DialContext connects to an address, HOST:PORT, that the worker was granted as
// egress:HOST:PORT. It fits http.Transport and its like, and is the same under
// every launcher. In a container it is seldom needed: there a granted name, or a
// loopback address, can be connected to as everywhere, by any library; a granted
// address of another kind only by this. The host looks the name up, makes the
// connection and writes it down. network is tcp. What is refused wraps
// ErrNotGranted where no other try can change it.
func (w *Worker) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, fmt.Errorf("dial %s: network %s: a worker has tcp alone", address, network)
	}
	conn, err := w.dialDoor(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	through, err := passDoor(conn, address)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return through, nil
}

// dialDoor connects to the host.
func (w *Worker) dialDoor(ctx context.Context) (*net.UnixConn, error) {
	if len(w.grants) == 0 {
		return nil, fmt.Errorf("the worker was granted nothing: %w", ErrNotGranted)
	}
	ctx, cancel := context.WithTimeout(ctx, doorPatience)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(w.dir, wire.Door))
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-time.After(doorRetry):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the host is away: %w", err)
		}
	}
}

// passDoor asks for a connection.
func passDoor(conn *net.UnixConn, address string) (net.Conn, error) {
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{"User-Agent": {""}}}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	from := bufio.NewReader(conn)
	resp, err := http.ReadResponse(from, request) //nolint:bodyclose // a 200 has none, and else the connection goes with it
	if err != nil {
		return nil, fmt.Errorf("ask the host: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return &passed{conn, from}, nil
	}
	reason, _ := io.ReadAll(io.LimitReader(resp.Body, maxDenial)) // as far as it can be read
	err = fmt.Errorf("the host refuses: %s (%s)", strings.TrimSpace(string(reason)), resp.Header.Get(wire.DoorCode))
	if resp.StatusCode == http.StatusForbidden {
		err = fmt.Errorf("%w: %w", err, ErrNotGranted)
	}
	return nil, err
}

// passed is a connection through the door; what came right behind the answer is
// read first.
type passed struct {
	*net.UnixConn
	from *bufio.Reader
}

func (p *passed) Read(b []byte) (int, error) { return p.from.Read(b) }

// useGrants learns what the worker was granted and, where its launcher has given
// it the names, takes connections to it until leave is called. The manifest has
// just been checked.
func (w *Worker) useGrants(f *folder) (leave func(), err error) {
	text, err := f.read(manifest.File)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Decode(text)
	if err != nil {
		return nil, err
	}
	if w.grants, err = capability.Set(m.Grants); err != nil {
		return nil, fmt.Errorf("use grants: %w", err)
	}
	if !hasNames(w.dir) {
		return func() {}, nil
	}
	b := &bridges{worker: w}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	for _, alias := range capability.Aliases(w.grants) {
		if err := b.open(alias); err != nil {
			b.close()
			return nil, fmt.Errorf("take connections to %s: %w", alias.Capability.HostPort(), err)
		}
	}
	return b.close, nil
}

// hasNames says whether the machine's hosts file is the worker's own, as it is in
// a container. Elsewhere names lead past the worker.
func hasNames(dir string) bool {
	own, err := os.Stat(filepath.Join(dir, "etc", "hosts"))
	if err != nil {
		return false
	}
	machine, err := os.Stat("/etc/hosts")
	return err == nil && os.SameFile(own, machine)
}
