package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk/client"
)

func downCommand(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop every worker and the host",
		Long: `Stop every worker, what the launcher itself runs, and the host. It returns once
the host is gone: nothing runs any more, and the data folder may be deleted.`,
		Example: `  dals-host down
  dals-host down --timeout 30s`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notNegative("timeout", timeout); err != nil {
				return err
			}
			err := answer(cmd.Context(), a, func(c *client.Client) (ended, error) {
				stopped, err := down(cmd.Context(), c, timeout)
				return ended{stopped}, err
			}, func(t *table, e ended) { t.text("host ended, %s stopped", count(e.Workers, "worker")) })
			if said, ok := errors.AsType[*client.Error](err); ok && said.Code == client.CodeUnavailable {
				return withHint(errors.New(said.Message), "workers of a host that was killed may still run: start it with dals-host serve, then run dals-host down")
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "time for workers to end by themselves (default the host's)")
	return cmd
}

// ended is what down prints.
type ended struct {
	Workers int `json:"workers_stopped"`
}

func down(ctx context.Context, c *client.Client, timeout time.Duration) (int, error) {
	status, err := c.Status(ctx)
	if err != nil {
		return 0, err
	}
	// Held before the end, the descriptor cannot come to mean another process.
	process, err := unix.PidfdOpen(status.PID, 0)
	if err != nil {
		return 0, fmt.Errorf("watch host process %d: %w", status.PID, err)
	}
	defer unix.Close(process)
	stopped, err := c.Down(ctx, timeout)
	if err != nil {
		return 0, err
	}
	return stopped, awaitExit(ctx, process)
}

// awaitExit waits for the end of a process; its descriptor becomes readable.
func awaitExit(ctx context.Context, process int) error {
	const look = 100 // milliseconds between looks at ctx
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, look)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the host's end: %w", err)
		}
	}
	return fmt.Errorf("wait for the host's end: %w", ctx.Err())
}
