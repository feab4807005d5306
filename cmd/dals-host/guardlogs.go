package main

import (
	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host"
)

// guardLogs is the name of the command that serve runs beside itself.
const guardLogs = "guard-logs"

// guardLogsCommand is for serve, not for people.
func guardLogsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     guardLogs,
		Short:   "Bound the workers' logs once the host that started this has ended",
		Example: `  dals-host guard-logs --data-dir /var/lib/dals < pipe-from-the-host`,
		Hidden:  true,
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.dataDir()
			if err != nil {
				return err
			}
			return host.GuardLogs(cmd.Context(), dir, a.stdin, a.logger())
		},
	}
}
