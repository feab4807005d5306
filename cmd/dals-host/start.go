package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func startCommand(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "start WORKER",
		Short: "Run a worker that is stopped or failed",
		Long: `Run a worker that is stopped or failed, and wait for its first heartbeat. One that
does not become healthy in time is ended again, and stays what it was.`,
		Example: `  dals-host start nora
  dals-host start nora --timeout 2m --json`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notNegative("timeout", timeout); err != nil {
				return err
			}
			return answer(cmd.Context(), a, func(c *client.Client) (client.Worker, error) {
				return c.Start(cmd.Context(), args[0], timeout)
			}, func(t *table, w client.Worker) { t.text("started %s (%s)", w.WorkerName, w.WorkerSerial) })
		},
	}
	healthyFlag(cmd, &timeout)
	return cmd
}
