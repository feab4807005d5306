// Package client is how programs use a running host: list worker types, forge
// workers, and send them signed envelopes.
//
// Most programs need three calls: Dial with the host's control socket and the
// client's key, Forge, and Send. Send signs the request, and returns only what
// it has verified: that the very worker signed this result, for this request.
//
//	c, err := client.Dial(ctx, client.Config{Host: "/var/lib/dals/host.sock", Key: key})
//	…
//	result, err := c.Send(ctx, client.SendRequest{
//		Worker: "nora", Kind: "template.echo", Input: map[string]string{"message": "hello"},
//	})
//
// The structs of this package carry the JSON keys of the command line's
// documents; they are the one place where those shapes are written down.
//
// What a host says no to is an *Error with a stable code and, where there is
// one, a hint; what a worker says no to, or a task that failed, is a *TaskError
// beside its Result. An ended context is its own error, for errors.Is. Names are
// looked up for every call; a worker's key, which never changes, once for each
// serial.
package client

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// maxMessage is the largest answer that is read, in bytes. Results are 4 MiB at
// most; a list of all workers may be longer.
const maxMessage = 64 << 20

// Config says where the host is and who we are.
type Config struct {
	// Host is the control socket: a path of any length, with or without "unix:".
	Host string
	// Key signs envelopes. Without it everything works but Send and Sign.
	Key ed25519.PrivateKey
}

// Client is a connection to a host. It is safe for concurrent use, and connects
// again by itself when the host was restarted.
type Client struct {
	socket string
	key    ed25519.PrivateKey
	dialer *dialer
	conn   *grpc.ClientConn
	host   hostv1.HostServiceClient
	keys   keys
}

// Dial connects to the host's control socket. That nobody listens there is an
// *Error with the code "unavailable".
func Dial(ctx context.Context, c Config) (*Client, error) {
	socket := strings.TrimPrefix(c.Host, "unix:")
	first, err := dialUnix(ctx, socket)
	if err != nil {
		return nil, unreachable(socket, err)
	}
	dialer := &dialer{socket: socket, first: first}
	// The name is never resolved: the dialer knows the one place to go.
	conn, err := grpc.NewClient("passthrough:///dals-host",
		grpc.WithContextDialer(dialer.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(reconnect()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		first.Close()
		return nil, fmt.Errorf("connect to host: %w", err)
	}
	conn.Connect()
	return &Client{
		socket: socket, key: c.Key, dialer: dialer, conn: conn, host: hostv1.NewHostServiceClient(conn),
		keys: keys{bySerial: map[string]ed25519.PublicKey{}},
	}, nil
}

// Close ends the connection and every call on it.
func (c *Client) Close() error { return errors.Join(c.conn.Close(), c.dialer.close()) }

// reconnect is for a socket of this machine: a host that is back is not kept
// waiting.
func reconnect() grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		MinConnectTimeout: 5 * time.Second,
	}
}

// dialer hands out the connection that Dial has tried, and later new ones.
type dialer struct {
	socket string

	mu    sync.Mutex
	first net.Conn
}

func (d *dialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	if conn := d.take(); conn != nil {
		return conn, nil
	}
	return dialUnix(ctx, d.socket)
}

// close ends the first connection if nobody has used it.
func (d *dialer) close() error {
	if conn := d.take(); conn != nil {
		return conn.Close()
	}
	return nil
}

func (d *dialer) take() net.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	conn := d.first
	d.first = nil
	return conn
}
