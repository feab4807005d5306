package door

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/wire"
)

const (
	maxHeader     = 4 << 10
	headerTimeout = 5 * time.Second
	answerTimeout = 30 * time.Second
)

// door is that of one worker.
type door struct {
	*Doors
	worker   worker.Worker
	traffic  *traffic
	folder   *os.Root
	socket   *net.UnixListener
	server   *http.Server
	rate     *rate.Limiter // of connections
	calls    *rate.Limiter
	refusals *refusals
	ends     context.Context // with the door
	end      context.CancelFunc
	served   sync.WaitGroup

	mu    sync.Mutex
	shutt bool
	count int
	conns sync.WaitGroup // those that were accepted, until they are closed
}

// newDoor listens in the worker's door folder, in place of the socket that an
// earlier host may have left there.
func (d *Doors) newDoor(w worker.Worker, dir string, t *traffic) (_ *door, err error) {
	folder, err := os.OpenRoot(filepath.Join(dir, manifest.DoorDir))
	if err != nil {
		return nil, err
	}
	one := &door{Doors: d, worker: w, traffic: t, folder: folder, rate: rate.NewLimiter(openRate, openBurst), calls: rate.NewLimiter(callRate, callBurst)}
	one.refusals = &refusals{door: one, counts: map[string]refused{}}
	if err := one.listen(); err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	one.ends, one.end = context.WithCancel(d.ctx)
	one.server = &http.Server{
		Handler:           http.HandlerFunc(one.answer),
		BaseContext:       func(net.Listener) context.Context { return one.ends },
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       answerTimeout,
		WriteTimeout:      answerTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          d.Logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	one.server.SetKeepAlivesEnabled(false)
	one.served.Go(func() { _ = one.server.Serve(one) }) // ends when the door is shut
	return one, nil
}

// listen binds by the folder's descriptor: its path may be longer than the
// address of a socket can be. Only the worker's group, which is its own, gets
// through the folder.
func (o *door) listen() error {
	name := filepath.Base(wire.Door)
	if err := o.folder.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	handle, err := o.folder.Open(".")
	if err != nil {
		return err
	}
	defer handle.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", handle.Fd(), name)
	if o.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return err
	}
	o.socket.SetUnlinkOnClose(false) // by then the path means something else
	if err := errors.Join(o.folder.Lchown(name, -1, o.worker.UID), o.folder.Chmod(name, 0o660)); err != nil {
		return errors.Join(err, o.socket.Close())
	}
	return nil
}

// shut ends the door and all that goes through it.
func (o *door) shut() error {
	o.mu.Lock()
	o.shutt = true
	o.mu.Unlock()
	o.end()
	_ = o.server.Close() // it closes what is not yet a connection to somewhere
	o.served.Wait()
	_ = o.server.Close() // and what was being accepted meanwhile
	o.conns.Wait()
	last, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	o.refusals.summarize(last)
	err := o.folder.Remove(filepath.Base(wire.Door))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, o.folder.Close())
}

// Accept takes the next connection of the worker's own, within its bounds. The
// door is the server's listener.
func (o *door) Accept() (net.Conn, error) {
	for {
		raw, err := o.socket.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(raw, o.worker.UID); err != nil {
			o.Logger.Warn("stranger at the door of a worker", "serial", o.worker.Serial, "error", err)
			_ = raw.Close()
			continue
		}
		if c := o.admit(raw); c != nil {
			return c, nil
		}
		_ = raw.Close()
	}
}

// Close closes the socket.
func (o *door) Close() error { return o.socket.Close() }

// Addr is the socket's.
func (o *door) Addr() net.Addr { return o.socket.Addr() }

// admit counts a connection in, or is nil.
func (o *door) admit(raw *net.UnixConn) net.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.shutt {
		return nil
	}
	if o.count >= maxConnections || o.accepted.Load() >= maxAllConnections {
		o.refusals.add(worker.Refuse(EgressBusy, "more than %d connections at a time, or %d of all workers", maxConnections, maxAllConnections))
		return nil
	}
	o.count++
	o.accepted.Add(1)
	o.conns.Add(1)
	return &conn{UnixConn: raw, left: sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.count--
		o.accepted.Add(-1)
		o.conns.Done()
	})}
}

// conn is a connection that is counted until it is closed.
type conn struct {
	*net.UnixConn
	left func()
}

func (c *conn) Close() error {
	defer c.left()
	return c.UnixConn.Close()
}

// checkPeer says whether who has connected runs under a uid.
func checkPeer(c *net.UnixConn, uid int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("read peer: %w", failed)
	}
	if int(peer.Uid) != uid {
		return fmt.Errorf("uid %d, not %d: %w", peer.Uid, uid, worker.ErrRefused)
	}
	return nil
}
