//go:build failpoint

package host

import (
	"context"
	"time"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// withPoints puts a point before and after whatever changes what runs, whoever
// asks for it.
func withPoints(l launch.Launcher) launch.Launcher { return pointLauncher{l} }

type pointLauncher struct{ launch.Launcher }

// withoutPoints is the launcher itself.
func withoutPoints(l launch.Launcher) launch.Launcher { return l.(pointLauncher).Launcher }

func (l pointLauncher) Start(ctx context.Context, serial worker.Serial) error {
	failpoint.Hit("launch", "start", "before")
	err := l.Launcher.Start(ctx, serial)
	failpoint.Hit("launch", "start", "after")
	return err
}

func (l pointLauncher) Stop(ctx context.Context, serial worker.Serial, grace time.Duration) error {
	failpoint.Hit("launch", "stop", "before")
	err := l.Launcher.Stop(ctx, serial, grace)
	failpoint.Hit("launch", "stop", "after")
	return err
}

func (l pointLauncher) Remove(ctx context.Context, serial worker.Serial) error {
	failpoint.Hit("launch", "remove", "before")
	err := l.Launcher.Remove(ctx, serial)
	failpoint.Hit("launch", "remove", "after")
	return err
}
