package host

import (
	"context"

	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/ports"
)

// CheckContainers says whether workers can run in containers on this machine.
// The error names what is missing, and its hint the command that helps.
func CheckContainers(ctx context.Context) error { return containerd.Available(ctx) }

// CheckPorts says whether workers can have ports from low to high, or with both
// 0 those that they get by default.
func CheckPorts(low, high int) error {
	_, err := ports.New(ports.Config{Low: low, High: high})
	return err
}
