package main

import (
	"encoding/base64"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host"
)

func vaultCommand(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "vault",
		Short: "Check the record of what happened",
		Example: `  dals-host vault verify
  dals-host vault prove 42`,
	}, vaultVerifyCommand(a), vaultProveCommand(a))
}

func vaultVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Compute the whole record again and compare every byte",
		Long: `Compute the whole record again from the entries and compare every byte of the
published log, its tree and its signed checkpoint with it. It reads the data
folder itself, whether or not a host runs on it, and changes nothing.`,
		Example: `  dals-host vault verify
  dals-host vault verify --data-dir /var/lib/dals --json`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.dataDir()
			if err != nil {
				return err
			}
			report, err := host.VerifyVault(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if err := a.show(report, func(t *table) {
				t.row("entries", strconv.FormatUint(report.Size, 10))
				t.row("root", base64.StdEncoding.EncodeToString(report.Root))
				if report.Unpublished > 0 {
					t.row("not published yet", strconv.FormatUint(report.Unpublished, 10))
				}
				for _, p := range report.Problems {
					t.row("PROBLEM", p)
				}
			}); err != nil {
				return err
			}
			if n := len(report.Problems); n > 0 {
				return withHint(fmt.Errorf("verify vault: %s, first %s", count(n, "problem"), report.Problems[0]),
					"somebody or something changed the record: keep the folder as it is, and compare with a backup")
			}
			a.message("the record is whole")
			return nil
		},
	}
}

func vaultProveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "prove ID",
		Short: "Prove that an entry is in the record",
		Long: `Prove that an entry is in the record: the entry, its path through the Merkle tree
and the signed checkpoint, checked before they are printed. ID is the index of an
entry, or the id of an envelope: its admission, and its result where there is one.`,
		Example: `  dals-host vault prove 42
  dals-host vault prove 0190f3c1-5b7e-7d11-9a33-5f0c6f2f9a10 --json`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.dataDir()
			if err != nil {
				return err
			}
			proof, err := host.ProveVault(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			return a.show(proof, func(t *table) {
				showProof(t, "", proof.EntryProof)
				switch {
				case proof.Result != nil:
					showProof(t, "result ", *proof.Result)
				case proof.ResultIndex != nil:
					t.row("result entry", fmt.Sprintf("%d, not published yet: try again in a moment; a stopped host publishes when it starts", *proof.ResultIndex))
				}
			})
		},
	}
}

// showProof prints one proof; of says of what it is.
func showProof(t *table, of string, p host.EntryProof) {
	t.row(of+"entry", strconv.FormatUint(p.Index, 10))
	t.row(of+"says", p.Entry)
	t.row(of+"leaf hash", base64.StdEncoding.EncodeToString(p.LeafHash))
	t.row(of+"tree size", strconv.FormatUint(p.TreeSize, 10))
	for i, hash := range p.InclusionPath {
		t.row(fmt.Sprintf("%spath %d", of, i), base64.StdEncoding.EncodeToString(hash))
	}
	t.block(of+"checkpoint", p.Checkpoint)
}
