package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func stopCommand(a *app) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop WORKER",
		Short: "End a worker's process; it stays stopped until it is started",
		Long: `End a worker's process and keep the worker: its numbers, keys, files and port. It
stays stopped, also when the host ends and another one starts, until
dals-host start.`,
		Example: `  dals-host stop nora
  dals-host stop nora --grace 30s`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notNegative("grace", grace); err != nil {
				return err
			}
			return answer(cmd.Context(), a, func(c *client.Client) (client.Worker, error) {
				return c.Stop(cmd.Context(), args[0], grace)
			}, func(t *table, w client.Worker) { t.text("stopped %s (%s)", w.WorkerName, w.WorkerSerial) })
		},
	}
	graceFlag(cmd, &grace)
	return cmd
}

func graceFlag(cmd *cobra.Command, grace *time.Duration) {
	cmd.Flags().DurationVar(grace, "grace", 0, "time for the worker to finish what it does and end (default the host's)")
}

func healthyFlag(cmd *cobra.Command, timeout *time.Duration) {
	cmd.Flags().DurationVar(timeout, "timeout", 0, "time for the worker to become healthy (default the host's)")
}
