package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/dals-host/dals-host/host/worker"
)

// listen binds a unix socket of mode 0600. The folder must be closed to group
// and others: that alone keeps strangers out between bind and chmod, whatever
// the umask.
func listen(path string) (*net.UnixListener, error) {
	dir, err := openPrivate(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open socket folder: %w", err)
	}
	defer dir.Close()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// An address holds 107 bytes; through the open folder any path is short.
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short})
	if err != nil {
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false) // the short name ends with the descriptor
	if err := os.Chmod(short, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("chmod control socket: %w", err), listener.Close())
	}
	return listener, nil
}

func openPrivate(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := dir.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = worker.Hint(fmt.Errorf("%s has mode %04o, want 0700: %w", path, info.Mode().Perm(), worker.ErrInvalid),
			"run chmod 700 "+path)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for an old socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("bind %s: %w: it exists and is no socket", path, worker.ErrConflict)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove old socket: %w", err)
	}
	return nil
}

// peerCredentials asks the kernel who connects, and admits root and the host's
// own user. It encrypts nothing: the socket does not leave the machine.
type peerCredentials struct {
	hostUID int
	log     hclog.Logger
}

// peerInfo is what the kernel said of a connected process.
type peerInfo struct {
	credentials.CommonAuthInfo

	uid uint32
	pid int32
}

func (peerInfo) AuthType() string { return "unix-peer" }

func (i peerInfo) String() string { return fmt.Sprintf("uid=%d pid=%d", i.uid, i.pid) }

// ServerHandshake refuses everybody but root and the host's user.
func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := peerOf(conn)
	if err == nil && info.uid != 0 && int(info.uid) != c.hostUID {
		err = fmt.Errorf("peer %s: %w", info, worker.ErrRefused)
	}
	if err != nil {
		// grpc closes the connection and tells nobody why.
		c.log.Warn("connection refused", "peer", info.String(), "error", err)
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, info, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are the server's side only")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is part of the interface; there are no names here.
func (peerCredentials) OverrideServerName(string) error { return nil }

func peerOf(conn net.Conn) (peerInfo, error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return peerInfo{}, fmt.Errorf("ask for the peer of a %T: %w", conn, worker.ErrInvalid)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return peerInfo{}, fmt.Errorf("ask for the peer: %w", err)
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return peerInfo{}, fmt.Errorf("ask for the peer: %w", err)
	}
	if failed != nil {
		return peerInfo{}, fmt.Errorf("ask for the peer: %w", failed)
	}
	return peerInfo{uid: cred.Uid, pid: cred.Pid}, nil
}

// peerName is how the gate and the record name the connection of a call.
func peerName(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.String()
		}
	}
	return "unknown"
}
