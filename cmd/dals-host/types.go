package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func typesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "types",
		Short: "List the registered worker types",
		Example: `  dals-host types
  dals-host types --json | jq -r '.[].tasks[].kind'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listTypes(cmd.Context()) },
	}
}

func (a *app) listTypes(ctx context.Context) error {
	return answer(ctx, a, func(c *client.Client) ([]client.Type, error) {
		types, err := c.Types(ctx)
		if err == nil && len(types) == 0 {
			a.message("no worker types: copy plugin binaries into the host's plugins folder")
		}
		return types, err
	}, typeTable)
}

func typeTable(t *table, types []client.Type) {
	t.row("NAME", "VERSION", "DIGEST", "FAMILY", "WORKERS", "TASKS", "ASKS FOR", "SUMMARY")
	for _, k := range types {
		var kinds []string
		for _, task := range k.Tasks {
			kinds = append(kinds, task.Kind)
		}
		workers := strconv.Itoa(k.Workers)
		if k.Draining {
			workers += " (draining)"
		}
		t.row(k.Name, k.Version, short(k.Digest), k.Family, workers, strings.Join(kinds, ","), strings.Join(k.Capabilities, ","), k.Summary)
	}
}

// short is enough of a digest to tell it from others.
func short(digest string) string { return digest[:min(len(digest), 12)] }
