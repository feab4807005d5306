package sdk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// lobby takes the host's connection while the worker still looks at its folder and
// opens its type: meanwhile they prove to each other who they are. Calls wait until
// the worker is there.
type lobby struct {
	workerv1.UnimplementedWorkerServiceServer
	server *grpc.Server
	ended  chan error    // how the server ended
	ready  chan struct{} // closed once runner is there
	runner *runner
}

var _ workerv1.WorkerServiceServer = (*lobby)(nil)

// openLobby listens before it has the keys: the host finds the socket meanwhile.
func openLobby(f *folder, dir string) (*lobby, error) {
	listener, err := listen(f.root, dir)
	if err != nil {
		return nil, err
	}
	if err := f.readKeys(); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	l := &lobby{
		server: grpc.NewServer(
			grpc.Creds(credentials.NewTLS(f.tls)),
			grpc.MaxRecvMsgSize(wire.MaxMessage),
			grpc.WaitForHandlers(true),
		),
		ended: make(chan error, 1),
		ready: make(chan struct{}),
	}
	workerv1.RegisterWorkerServiceServer(l.server, l)
	go func() { l.ended <- l.server.Serve(listener) }()
	return l, nil
}

// admit has calls answered by r, also those that wait.
func (l *lobby) admit(r *runner) {
	l.runner = r
	close(l.ready)
}

// close ends the server and waits for its calls.
func (l *lobby) close() { l.server.Stop() }

// Exchange is the runner's.
func (l *lobby) Exchange(stream exchangeStream) error {
	if err := l.wait(stream.Context()); err != nil {
		return err
	}
	return l.runner.Exchange(stream)
}

// Heartbeat is the runner's.
func (l *lobby) Heartbeat(stream heartbeatStream) error {
	if err := l.wait(stream.Context()); err != nil {
		return err
	}
	return l.runner.Heartbeat(stream)
}

func (l *lobby) wait(ctx context.Context) error {
	select {
	case <-l.ready:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// listen makes the worker's socket, in place of one that an earlier process
// left.
func listen(root *os.Root, dir string) (net.Listener, error) {
	if err := root.Remove(wire.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	path := filepath.Join(dir, wire.Socket)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), listener.Close())
	}
	return listener, nil
}
