package sdk

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/dals-host/dals-host/sdk/capability"
)

// bridges take connections inside a worker's container, on loopback addresses
// that its hosts file gives to names, and carry each through the door. So every
// library works as it is, and TLS is between it and the server.
type bridges struct {
	worker    *Worker
	ctx       context.Context // of all connections
	cancel    context.CancelFunc
	listeners []net.Listener
	running   sync.WaitGroup
}

// firstTry bounds how long who connects waits for the host's answer.
const firstTry = 30 * time.Second

func (b *bridges) open(a capability.Alias) error {
	l, err := net.Listen("tcp", a.Listen.String())
	if err != nil {
		return err
	}
	b.listeners = append(b.listeners, l)
	b.running.Go(func() {
		for {
			near, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of descriptors, for a moment
				select {
				case <-time.After(doorRetry):
				case <-b.ctx.Done():
				}
				continue
			}
			b.running.Go(func() { b.carry(near.(*net.TCPConn), a.Capability.HostPort()) })
		}
	})
	return nil
}

func (b *bridges) close() {
	b.cancel()
	for _, l := range b.listeners {
		_ = l.Close() // it has nothing to say
	}
	b.running.Wait()
}

// carry takes bytes both ways until both are through. What was refused looks
// like a connection that breaks: the log says why.
func (b *bridges) carry(near *net.TCPConn, address string) {
	defer near.Close()
	ctx, cancel := context.WithTimeout(b.ctx, firstTry)
	far, err := b.worker.DialContext(ctx, "tcp", address)
	cancel()
	if err != nil {
		_ = near.SetLinger(0) // a reset, not an empty answer
		b.worker.log.Warn("connection refused", "error", err)
		return
	}
	defer far.Close()
	hangUp := func() { _ = far.Close(); _ = near.SetLinger(0); _ = near.Close() }
	defer context.AfterFunc(b.ctx, hangUp)()
	var back sync.WaitGroup
	back.Go(func() { pass(near, far, hangUp) })
	pass(far, near, hangUp)
	back.Wait()
}

// pass copies until the end of from, and passes that on; anything else ends both
// ways.
func pass(to, from net.Conn, hangUp func()) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		hangUp()
	}
}
