package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

// ErrNoDaemon says that no daemon listens for a container.
var ErrNoDaemon = errors.New("the container has no daemon")

// Start has the daemon of a container, whose folder is bundle, start it. containerd
// would look the container up, pass this on, ask how it went, and keep nothing of it.
func Start(ctx context.Context, bundle, id string) error {
	address, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	daemon, hangUp, err := call(strings.TrimPrefix(string(address), "unix://"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	defer hangUp()
	_, err = daemon.Start(ctx, &task.StartRequest{ID: id})
	if errors.Is(err, ttrpc.ErrClosed) {
		err = fmt.Errorf("%w: its daemon has ended: %w", errdefs.ErrUnavailable, err)
	}
	return err
}

// call connects to the daemon that listens at socket.
func call(socket string) (daemon task.TTRPCTaskService, hangUp func(), err error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	client := ttrpc.NewClient(conn)
	return task.NewTTRPCTaskClient(client), func() { _ = client.Close() }, nil
}
