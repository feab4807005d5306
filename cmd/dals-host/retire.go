package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func retireCommand(a *app) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "retire WORKER",
		Short: "End a worker: container, keys and files go, its record stays",
		Long: `End a worker for good: its container, keys and files are removed. Its entries in
the record stay, and its name may be used again.`,
		Example: `  dals-host retire nora
  dals-host retire nora --grace 30s --json`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notNegative("grace", grace); err != nil {
				return err
			}
			return answer(cmd.Context(), a, func(c *client.Client) (client.Worker, error) {
				return c.Retire(cmd.Context(), args[0], grace)
			}, func(t *table, w client.Worker) { t.text("retired %s (%s)", w.WorkerName, w.WorkerSerial) })
		},
	}
	graceFlag(cmd, &grace)
	return cmd
}
