package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func upgradeCommand(a *app) *cobra.Command {
	var (
		request    client.UpgradeRequest
		configFile string
		settings   []string
	)
	cmd := &cobra.Command{
		Use:   "upgrade WORKER",
		Short: "Move a worker to another version of its type, or another config",
		Long: `Move a worker to another version of its type: without --version the current one.
Its serial, numbers, port, keys, state and log stay. The old version comes back if
the new one does not become healthy; what that wrote into the worker's state stays.

The worker keeps its config, if the new version takes it. One that is given with
--config or --set replaces all of it. A folder given with --mount takes the place of
the one that the worker has there. Where nothing differs nothing is done.`,
		Example: `  dals-host upgrade nora
  dals-host upgrade nora --version 1.1.0
  dals-host upgrade nora --set greeting=ahoy --grace 30s
  dals-host upgrade pics --mount /big/photos:/mnt/photos:ro`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(notNegative("grace", request.Grace), notNegative("timeout", request.Timeout)); err != nil {
				return err
			}
			config, err := a.readConfig(configFile, settings)
			if err != nil {
				return err
			}
			if config != nil {
				request.Config = config
			}
			request.Worker = args[0]
			return answer(cmd.Context(), a, func(c *client.Client) (client.Upgraded, error) {
				return a.upgrade(cmd, c, request)
			}, upgradeText)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&request.Version, "version", "", "version of the type (default the current one)")
	flags.StringVar(&configFile, "config", "", "`FILE` with the worker's new config, a JSON object; - is stdin")
	flags.StringArrayVar(&settings, "set", nil, "set `KEY=VALUE` in the new config; a value that is not JSON is text (repeatable)")
	flags.StringArrayVar(&request.Mounts, "mount", nil, "show the worker this folder, `SOURCE:/mnt/NAME[:ro]`, in place of the one there (repeatable)")
	graceFlag(cmd, &request.Grace)
	healthyFlag(cmd, &request.Timeout)
	return cmd
}

// upgrade says so when there was nothing to do: the manifest is then the one that
// the worker had.
func (a *app) upgrade(cmd *cobra.Command, c *client.Client, r client.UpgradeRequest) (client.Upgraded, error) {
	was, err := c.Worker(cmd.Context(), r.Worker)
	if err != nil {
		return client.Upgraded{}, err
	}
	done, err := c.Upgrade(cmd.Context(), r)
	if err == nil && done.ManifestSHA256 == was.ManifestSHA256 {
		a.message("nothing to do: worker %s has this version and config", done.WorkerName)
	}
	return done, err
}

func upgradeText(t *table, w client.Upgraded) {
	t.text("%s (%s) is %s %s, was %s", w.WorkerName, w.WorkerSerial, w.WorkerType, w.TypeVersion, w.FromVersion)
}
