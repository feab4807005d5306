package host

import (
	"context"
	"time"

	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/registry"
)

// CheckContainers says whether workers can run in containers on this machine.
// The error names what is missing, and its hint the command that helps.
func CheckContainers(ctx context.Context) (by string, err error) { return containerd.Available(ctx) }

// CheckUserNamespaces says whether containers can have user namespaces of their own
// on this machine. The error says why not, and its hint what to do.
func CheckUserNamespaces(ctx context.Context) error { return containerd.UserNamespaces(ctx) }

// CheckPorts says whether workers can have ports from low to high, or with both
// 0 those that they get by default.
func CheckPorts(low, high int) error {
	_, err := ports.New(ports.Config{Low: low, High: high})
	return err
}

// Sender tells the name of the client with that id, and when it was revoked: the
// zero time while it may send. It reads a data folder as it is, whether or not a
// host runs on it. A key that was never enrolled is worker.ErrNotFound.
func Sender(ctx context.Context, dataDir, id string) (name string, revoked time.Time, err error) {
	r, err := registry.OpenReadOnly(ctx, pathsOf(dataDir).registry)
	if err != nil {
		return "", time.Time{}, err
	}
	defer r.Close()
	c, err := r.Client(ctx, id)
	return c.Name, c.RevokedAt, err
}
