package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func gcCommand(a *app) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete what nothing needs any more",
		Long: `Delete what nothing needs any more: plugin binaries that no worker type and no
worker uses, the images and root folders that were made of them, stages that no
forge works on, what is left of workers that retired more than a day ago, and what
a recovery put aside more than 30 days ago. The host goes on meanwhile. --dry-run
lists what would go, and deletes nothing.`,
		Example: `  dals-host gc --dry-run
  dals-host gc --json | jq 'map(.bytes) | add'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return answer(cmd.Context(), a, func(c *client.Client) ([]client.Garbage, error) {
				found, err := c.CollectGarbage(cmd.Context(), dryRun)
				if err == nil && dryRun {
					a.message("nothing was deleted: this is what gc would delete")
				}
				return found, err
			}, garbageTable)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "list what would be deleted, and delete nothing")
	return cmd
}

func garbageTable(t *table, found []client.Garbage) {
	t.row("KIND", "NAME", "BYTES", "REASON")
	var total int64
	for _, g := range found {
		t.row(g.Kind, g.Name, strconv.FormatInt(g.Bytes, 10), g.Reason)
		total += g.Bytes
	}
	t.text("%s, %d bytes", count(len(found), "thing"), total)
}
