package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host"
)

func restoreCommand(a *app) *cobra.Command {
	var passphraseFile, headFile string
	var options host.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a host's data folder from a backup",
		Long: `Make a host's data folder from a backup. No host may run on the folder, and it must
be empty, but for keys/ and plugins/ that are kept. All of the backup is checked
before anything is written; the folder is put together beside the target and then
takes its place in one step.

A backup is refused when it is damaged, when its registry does not support its own
checkpoint, and when it is older than a checkpoint that somebody still has: the one
in the data folder's record/, or one that was kept elsewhere, given with --head.

After it, serve starts the workers again, with an empty state/. Numbers that may have
been given since the backup are left out, and envelopes from before the restore are
refused. Exit code 3 says that some workers come back as failed: they are named.`,
		Example: `  dals-host restore host.backup --passphrase-file backup.pass
  dals-host restore host.backup --head checkpoint-of-yesterday`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if options.WithoutKeys && passphraseFile != "" {
				return usagef("--without-keys and --passphrase-file exclude each other")
			}
			if options.DataDir, err = a.dataDir(); err != nil {
				return err
			}
			options.Logger = a.logger()
			if headFile != "" {
				if options.Head, err = os.ReadFile(headFile); err != nil {
					return fmt.Errorf("read checkpoint: %w", err)
				}
			}
			return a.restore(cmd.Context(), args[0], passphraseFile, options)
		},
	}
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "`FILE` with the passphrase of the keys")
	cmd.Flags().StringVar(&headFile, "head", "", "`FILE` with a checkpoint of this host that was kept elsewhere")
	cmd.Flags().BoolVar(&options.WithoutKeys, "without-keys", false, "leave the keys in the backup: the folder has the host's, and workers come back as failed")
	return cmd
}

func (a *app) restore(ctx context.Context, file, passphraseFile string, o host.RestoreOptions) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read backup: %w", err)
	}
	defer f.Close()
	o.File = f
	if !o.WithoutKeys {
		if o.Passphrase, err = a.passphrase(passphraseFile, "Passphrase of the keys (empty if there are none): ", false); err != nil {
			return err
		}
	}
	restored, err := host.Restore(ctx, o)
	if err != nil {
		return err
	}
	return a.showRestored(o.DataDir, restored)
}

func (a *app) showRestored(dir string, r *host.Restored) error {
	err := a.show(r, func(t *table) {
		t.text("host %s restored to %s, as of %s: %s, %s", r.HostID, dir, r.BackupFrom.Format(time.RFC3339), entries(r.Entries), count(r.Workers, "worker"))
		t.text("start it with dals-host serve; envelopes are taken that are issued from %s on", r.RefusedBefore.Format(time.RFC3339))
		for _, f := range r.Failed {
			t.text("worker %s (%s) comes back as failed: %s", f.WorkerName, f.WorkerSerial, f.Reason)
		}
	})
	if err != nil || len(r.Failed) == 0 {
		return err
	}
	return &partlyError{withHint(fmt.Errorf("%s restored as failed", count(len(r.Failed), "worker")), "retire them and forge them again")}
}
