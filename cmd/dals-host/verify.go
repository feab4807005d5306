package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host"
)

func verifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify WORKER",
		Short: "Check a worker's files and vault against its signed manifest",
		Long: `Check a worker's files against its signed manifest and its vault against the
record, and name every difference. It reads the data folder itself, whether or
not a host runs on it.`,
		Example: `  dals-host verify nora
  dals-host verify nora --json | jq .differences`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.dataDir()
			if err != nil {
				return err
			}
			w, differences, err := host.VerifyWorker(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			document := struct {
				Name        string   `json:"worker_name"`
				Serial      string   `json:"worker_serial"`
				Integrity   bool     `json:"vault_integrity"`
				Differences []string `json:"differences"`
			}{w.Name, string(w.Serial), len(differences) == 0, append([]string{}, differences...)}
			if err := a.show(document, func(t *table) {
				t.text("%s (%s): vault_integrity=%t", document.Name, document.Serial, document.Integrity)
				for _, d := range differences {
					t.text("  %s", d)
				}
			}); err != nil {
				return err
			}
			if !document.Integrity {
				return withHint(fmt.Errorf("verify %s: vault_integrity=false: %s", w.Name, strings.Join(differences, "; ")), adviceOn(differences))
			}
			return nil
		},
	}
}

// adviceOn tells a fault of the record from one of the worker.
func adviceOn(differences []string) string {
	for _, d := range differences {
		if !strings.HasPrefix(d, host.RecordFault) {
			return "its files are not those that were forged: retire the worker and forge it anew"
		}
	}
	return "the worker is whole, the record is not: run dals-host vault verify"
}
