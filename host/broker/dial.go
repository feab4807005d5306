package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/dals-host/dals-host/host/worker"
)

// What gRPC may hold of a worker's that nobody has read yet. Fixed windows also
// keep gRPC from growing them.
const (
	window     = 1 << 20  // bytes
	maxHeaders = 16 << 10 // bytes of one response's headers
)

// connection is a gRPC connection over one socket that is never re-made behind
// our back.
type connection struct {
	*grpc.ClientConn
	once chan net.Conn // the socket, until gRPC takes it
}

func (c *connection) close() {
	_ = c.Close() // it fails only when it was closed
	select {
	case raw := <-c.once:
		_ = raw.Close() // nothing was written to it
	default:
	}
}

// dial connects to the worker's socket now.
func (s *session) dial() (*connection, error) {
	raw, err := dialSocket(filepath.Join(s.dir, "run"), s.worker.UID)
	if err != nil {
		return nil, err
	}
	config, err := s.b.Authority.HostTLS(string(s.worker.Serial))
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("make TLS configuration: %w", err)
	}
	once := make(chan net.Conn, 1)
	once <- raw
	conn, err := grpc.NewClient("passthrough:///"+string(s.worker.Serial),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window), grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("connection ended")
			}
		}))
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial worker: %w", err)
	}
	return &connection{ClientConn: conn, once: once}, nil
}

// dialSocket connects to worker.sock in a folder that the worker may write. The
// host may be root and the worker a stranger's code: a symbolic link there
// could name any socket of the machine. So the socket is opened without
// following links, its type and owner are checked on the descriptor, and the
// connection goes through the descriptor. That also works for paths that are
// longer than a socket address can be.
func dialSocket(runDir string, owner int) (net.Conn, error) {
	dir, err := unix.Open(runDir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", runDir, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, "worker.sock", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open worker socket: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "worker.sock")
	defer socket.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat worker socket: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != owner {
		return nil, fmt.Errorf("worker socket: mode %o, owner %d: not a socket of uid %d: %w", st.Mode, st.Uid, owner, worker.ErrInvalid)
	}
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("dial worker socket: %w", err)
	}
	return conn, nil
}
