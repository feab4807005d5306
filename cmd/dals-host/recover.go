package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host"
)

func recoverCommand(a *app) *cobra.Command {
	var options host.RecoverOptions
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Make a lost or damaged registry again from the record",
		Long: `Make a lost or damaged registry again from the record's own files, as far as the
signed checkpoint vouches for them, and compare it with the workers' folders and
with what runs. No host may run on the data folder. The old registry is kept as
registry.db.corrupt-TIME. A sound registry is compared only.

What the host did after its last checkpoint is not known any more: numbers are left
out, and envelopes from before the recovery are refused. Where the record's files
are damaged too, nothing is done without --accept-loss: it goes on with what comes
before the damage, as another history than the one that was published.

Exit code 3 says that there are differences that a person has to look at.`,
		Example: `  dals-host recover
  dals-host recover --json | jq '.differences[] | select(.look)'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if options.DataDir, err = a.dataDir(); err != nil {
				return err
			}
			options.Logger = a.logger()
			recovered, err := host.Recover(cmd.Context(), options)
			if err != nil {
				return err
			}
			return a.showRecovered(recovered)
		},
	}
	cmd.Flags().BoolVar(&options.AcceptLoss, "accept-loss", false, "go on with what is sound of a damaged record")
	return cmd
}

func (a *app) showRecovered(r *host.Recovered) error {
	err := a.show(r, func(t *table) {
		if r.Rebuilt {
			t.text("registry made again from %s, because: %s", entries(r.Entries), r.Why)
			t.text("it has %s, %s and %s", count(r.Workers, "worker"), count(r.Clients, "client"), count(r.Types, "type"))
			t.text("envelopes are taken that are issued from %s on", r.RefusedBefore.Format(time.RFC3339))
		} else {
			t.text("the registry is sound: it was compared, nothing was changed")
		}
		for _, kept := range r.Kept {
			t.text("kept: %s", kept)
		}
		for _, damage := range r.Damage {
			t.text("damaged: %s", damage)
		}
		for _, note := range r.Notes {
			t.text("%s", note)
		}
		for _, d := range r.Differences {
			t.row(lookWord(d.Look), d.WorkerName, string(d.WorkerSerial), d.What)
		}
	})
	if err != nil || !r.NeedsAttention() {
		return err
	}
	return &partlyError{errors.New("there are differences that somebody has to look at")}
}

func lookWord(look bool) string {
	if look {
		return "look"
	}
	return "note"
}
