package main

import (
	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func pluginsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "plugins",
		Short: "List every plugin binary that the host has seen",
		Long: `List every plugin binary that the host has seen, with its state. A quarantined one
says why, and what to do about it; it harms nothing meanwhile.`,
		Example: `  dals-host plugins
  dals-host plugins --json | jq '.[] | select(.state == "quarantined")'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return answer(cmd.Context(), a, func(c *client.Client) ([]client.Plugin, error) {
				return c.Plugins(cmd.Context())
			}, pluginTable)
		},
	}
}

func pluginTable(t *table, plugins []client.Plugin) {
	t.row("STATE", "TYPE", "VERSION", "DIGEST", "PATH")
	for _, p := range plugins {
		t.row(p.State, p.Type, p.Version, short(p.Digest), p.Path)
	}
	for _, p := range plugins {
		if p.Reason != "" {
			t.text("%s: %s", p.Path, p.Reason)
			t.text("  fix: %s", p.Fix)
		}
	}
}
