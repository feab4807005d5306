package main

import (
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func eventsCommand(a *app) *cobra.Command {
	var (
		request client.EventsRequest
		since   string
	)
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what happened to workers",
		Long: `Print what happened to workers, oldest first: forged, forge_failed, lost (with how it
ended), restarted, failed (with its last output), stopped, started, upgraded, retired.
It comes from the record, and so outlives host and workers.`,
		Example: `  dals-host events --since 1h
  dals-host events --worker nora
  dals-host events --follow --json | jq .`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			request.Since = at
			return a.with(cmd.Context(), func(c *client.Client) error {
				return a.events(c.Events(cmd.Context(), request), request.Follow)
			})
		},
	}
	cmd.Flags().BoolVarP(&request.Follow, "follow", "f", false, "go on with what happens; --json gives a line for each")
	cmd.Flags().StringVar(&request.Worker, "worker", "", "only of this `WORKER`, by name or serial")
	cmd.Flags().StringVar(&since, "since", "", "only from `TIME` on: RFC 3339, or how long ago, as in 10m")
	completeFlag(cmd, "worker", a.workerNames)
	return cmd
}

func (a *app) events(events iter.Seq2[client.Event, error], follow bool) error {
	all := []client.Event{}
	for e, err := range events {
		if err != nil {
			return err
		}
		if a.json && !follow {
			all = append(all, e)
			continue
		}
		line := eventText(e)
		if a.json {
			text, err := json.Marshal(e)
			if err != nil {
				return err
			}
			line = string(escaped(text))
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	if a.json && !follow {
		return a.document(all)
	}
	return nil
}

func eventText(e client.Event) string {
	return oneLine(reasoned(fmt.Sprintf("%s %-12s %s (%s)", stamp(e.At), e.Event, e.WorkerName, e.WorkerSerial), e.Reason))
}
