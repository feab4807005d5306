package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host/worker"
)

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this command and of its forge",
		Example: `  dals-host version
  dals-host version --json | jq -r .forge_version`,
		Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Forge   string `json:"forge_version"`
				Go      string `json:"go_version"`
			}{ownVersion(), worker.ForgeVersion, runtime.Version()}
			return a.show(v, func(t *table) { t.text("dals-host %s, forge version %s, %s", v.Version, v.Forge, v.Go) })
		},
	}
}
