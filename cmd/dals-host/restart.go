package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func restartCommand(a *app) *cobra.Command {
	var grace, timeout time.Duration
	cmd := &cobra.Command{
		Use:   "restart WORKER",
		Short: "End a worker's process and run it again",
		Long: `End a worker's process and run it again, whatever state the worker is in. A worker
that was live and does not come back is tried again by the host, as one that was
lost.`,
		Example:           `  dals-host restart nora`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(notNegative("grace", grace), notNegative("timeout", timeout)); err != nil {
				return err
			}
			return answer(cmd.Context(), a, func(c *client.Client) (client.Worker, error) {
				return c.Restart(cmd.Context(), args[0], grace, timeout)
			}, func(t *table, w client.Worker) { t.text("restarted %s (%s)", w.WorkerName, w.WorkerSerial) })
		},
	}
	graceFlag(cmd, &grace)
	healthyFlag(cmd, &timeout)
	return cmd
}
