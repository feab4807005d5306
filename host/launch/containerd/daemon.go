package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/dals-host/dals-host/host/worker"
)

// Private is the Address of a containerd of the launcher's own.
const Private = "private"

// daemon is the containerd that a launcher works with.
type daemon interface {
	taskMade()                  // there is a task, which tells more of containerd than it does
	hung(silent time.Duration)  // it has not answered for so long
	blame(cause error) error    // it did not answer in time
	close() error               // lets go of it
	undo(context.Context) error // takes back what opening it has begun; after close
	down(context.Context) error // ends what there is of it for the host, and deletes the host's files
}

// openDaemon opens the containerd that the configuration, or else what the data
// folder was used with, asks for.
func (l *Launcher) openDaemon(ctx context.Context) error {
	address, err := chooseAddress(l.cfg)
	if err != nil {
		return err
	}
	if address != Private {
		return l.openShared(ctx, address)
	}
	if l.tools, err = findTools(ctx, l.cfg.Shim, l.cfg.Runtime); err != nil {
		return err
	}
	if l.cfg.RootUID != 0 {
		if err := UserNamespaces(ctx); err != nil {
			return err
		}
	}
	p, err := startPrivate(ctx, l.cfg, l.tools, l.log)
	if err != nil {
		return err
	}
	l.daemon, l.site = p, p.site
	if l.client, err = connect(p.address, p.namespace); err != nil {
		return err
	}
	return l.checkPrivate(ctx)
}

// checkPrivate gives a containerd that does not answer, which an earlier host has
// started, one chance to be started again.
func (l *Launcher) checkPrivate(ctx context.Context) error {
	err := l.awaitServer(ctx)
	if !errors.Is(err, worker.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	l.daemon.hung(l.pulse.start)
	return l.awaitServer(ctx)
}

// awaitServer checks containerd once it answers.
func (l *Launcher) awaitServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.pulse.start)
	defer cancel()
	for {
		err := checkServer(ctx, l.client)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w (%w)", err, worker.ErrUnavailable)
		case !errors.Is(err, worker.ErrUnavailable):
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond): // it is being started
		}
	}
}

func (l *Launcher) openShared(ctx context.Context, address string) (err error) {
	if l.cfg.RootUID != 0 {
		return worker.Hint(fmt.Errorf("user namespaces under the containerd at %s, which cannot be shown root folders: %w", address, worker.ErrInvalid),
			"leave out --userns; with --containerd private they can be had")
	}
	if l.tools, err = findToolsBeside(ctx, l.cfg.Runtime); err != nil {
		return err
	}
	s, err := openShared(ctx, l.cfg, address, l.log)
	if err != nil {
		return fmt.Errorf("use the containerd at %s: %w", address, err)
	}
	l.daemon, l.site, l.client = s, s.site, s.client
	return nil
}

func connect(address, namespace string) (*client.Client, error) {
	quick := grpc.ConnectParams{MinConnectTimeout: 10 * time.Second, Backoff: backoff.DefaultConfig}
	quick.Backoff.BaseDelay, quick.Backoff.MaxDelay = 20*time.Millisecond, time.Second
	// The client's own dialer would stay for seconds where nobody listens, whoever has gone.
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", address)
	})
	c, err := client.New(address, client.WithDefaultNamespace(namespace),
		client.WithExtraDialOpts(append(pointOptions(), grpc.WithConnectParams(quick), dial)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return c, nil
}

func checkServer(ctx context.Context, c *client.Client) error {
	v, err := c.Version(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for its version: %w", family(err))
	}
	return checkVersion(v.Version)
}
