package host

import (
	"context"
	"fmt"
	"os"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/launch/process"
	"github.com/dals-host/dals-host/host/worker"
)

// The words of --launcher.
const (
	launcherAuto       = "auto"
	launcherContainerd = "containerd"
	launcherProcess    = "process"
)

// pickLauncher opens the launcher that c asks for and says why. Workers never
// change their launcher: with living ones, auto means theirs.
func pickLauncher(ctx context.Context, c Config, hostID string, living []worker.Worker) (launch.Launcher, string, error) {
	name, reason, err := decideLauncher(ctx, c, living)
	if err != nil {
		return nil, "", err
	}
	for _, w := range living {
		if w.Launcher != name {
			return nil, "", worker.Hint(fmt.Errorf("worker %s runs under the %s launcher, not %s: %w", w.Name, w.Launcher, name, worker.ErrConflict),
				"use --launcher "+w.Launcher+", or retire its workers first")
		}
	}
	if c.UserNS && name != launcherContainerd {
		return nil, "", worker.Hint(fmt.Errorf("user namespaces under the %s launcher: %w", name, worker.ErrInvalid), "leave out --userns, or use --launcher containerd")
	}
	launcher, err := openLauncher(ctx, c, name, hostID)
	if err != nil {
		return nil, "", fmt.Errorf("open %s launcher: %w", name, err)
	}
	if c.UserNS {
		reason += "; new containers have user namespaces"
	}
	return withPoints(launcher), reason, nil
}

func openLauncher(ctx context.Context, c Config, name, hostID string) (launch.Launcher, error) {
	logger := c.Logger.Named(name)
	if name == launcherProcess {
		return process.New(ctx, process.Config{DataDir: c.DataDir, HostID: hostID, Logger: logger})
	}
	config := containerd.Config{DataDir: c.DataDir, HostID: hostID, Address: c.Containerd, Runtime: c.Runtime, Logger: logger}
	if c.UserNS {
		config.RootUID = rootUIDOf(hostID)
	}
	return containerd.New(ctx, config)
}

func decideLauncher(ctx context.Context, c Config, living []worker.Worker) (name, reason string, err error) {
	named := c.Containerd != "" && c.Containerd != containerd.Private
	switch {
	case named && c.Launcher == launcherProcess:
		return "", "", worker.Hint(fmt.Errorf("launcher %s with a containerd: %w", c.Launcher, worker.ErrInvalid), "use --launcher containerd")
	case named && (c.Launcher == launcherContainerd || c.Launcher == launcherAuto || c.Launcher == ""):
		return launcherContainerd, "as asked for, under the containerd at " + c.Containerd, nil
	case c.Launcher == launcherContainerd, c.Launcher == launcherProcess:
		return c.Launcher, "as asked for", nil
	case c.Launcher != launcherAuto && c.Launcher != "":
		return "", "", worker.Hint(fmt.Errorf("launcher %q: %w", c.Launcher, worker.ErrInvalid), "use auto, containerd or process")
	}
	if len(living) > 0 {
		return living[0].Launcher, "the launcher of the workers that live", nil
	}
	if os.Geteuid() != 0 {
		return launcherProcess, "not root: workers are plain processes without isolation, and can read each other's keys", nil
	}
	versions, err := containerd.Available(ctx)
	if err != nil {
		return "", "", worker.Hint(fmt.Errorf("no containers on this machine: %w", err),
			worker.HintOf(err)+"; or, to run workers as plain processes without isolation, use --launcher process")
	}
	return launcherContainerd, "root, and there is " + versions, nil
}
