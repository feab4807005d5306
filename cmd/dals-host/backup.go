package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/dals-host/dals-host/host"
	"github.com/dals-host/dals-host/sdk/client"
)

func backupCommand(a *app) *cobra.Command {
	var (
		passphraseFile string
		force          bool
	)
	cmd := &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Write a backup of the running host to one file",
		Long: `Write a backup of the running host to one file, while it goes on: the registry
with the record, the files and plugin binaries of the workers, and the checkpoint.
With a passphrase the keys are in it too, encrypted by age: those of the host and
of its workers. Without one they are left out, and a restore needs the host's
keys/ and cannot bring workers back. What workers keep in state/ is not in it.

The passphrase is the one line of --passphrase-file, or typed at the terminal. The
file is read again when it is written. Exit code 3 says that the files of some
workers could not be had: they are named.`,
		Example: `  dals-host backup host.backup --passphrase-file backup.pass
  dals-host backup - --passphrase-file backup.pass | ssh elsewhere 'cat > host.backup'`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" && isTerminal(a.stdout) {
				return usagef("a backup is no text for a terminal: name a FILE, or send stdout somewhere")
			}
			if args[0] == "-" && a.json {
				return usagef("with - the backup itself is on stdout: leave --json out")
			}
			passphrase, err := a.passphrase(passphraseFile, "Passphrase for the keys (empty leaves them out): ", true)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				if args[0] == "-" {
					return c.Backup(cmd.Context(), passphrase, a.stdout)
				}
				return a.backup(cmd.Context(), c, args[0], passphrase, force)
			})
		},
	}
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "`FILE` with the passphrase for the keys")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it is there")
	return cmd
}

func isTerminal(w any) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// backupDocument is what backup prints.
type backupDocument struct {
	File           string               `json:"file"`
	Bytes          int64                `json:"bytes"`
	HostID         string               `json:"host_id"`
	CreatedAt      time.Time            `json:"created_at"`
	Entries        uint64               `json:"entries"`
	CheckpointSize uint64               `json:"checkpoint_size"`
	Keys           bool                 `json:"keys"`
	Workers        int                  `json:"workers"`
	Missing        []host.MissingWorker `json:"missing"`
}

// backup writes the file whole or not at all, and reads it again.
func (a *app) backup(ctx context.Context, c *client.Client, file, passphrase string, force bool) (err error) {
	if _, err := os.Lstat(file); err == nil && !force {
		return withHint(fmt.Errorf("write backup: %s: %w", file, fs.ErrExist), "give another file, or --force to replace it")
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }() // once it has its name, nothing is left to remove
	if err := c.Backup(ctx, passphrase, f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("read backup again: %w", err)
	}
	h, err := host.InspectBackup(f)
	if err != nil {
		return fmt.Errorf("read backup again: %w", err)
	}
	if err := place(f.Name(), file, force); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return a.showBackup(backupDocument{
		File: file, Bytes: size, HostID: h.HostID, CreatedAt: h.CreatedAt, Entries: h.Entries, CheckpointSize: h.CheckpointSize,
		Keys: h.Keys, Workers: h.Workers, Missing: h.Missing,
	})
}

// place gives a finished file its name. Without force it replaces nothing, also
// not what has come there meanwhile.
func place(from, to string, force bool) error {
	var err error
	if force {
		err = os.Rename(from, to)
	} else if err = os.Link(from, to); err == nil {
		err = os.Remove(from)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (a *app) showBackup(d backupDocument) error {
	err := a.show(d, func(t *table) {
		keys := "with its keys, encrypted"
		if !d.Keys {
			keys = "without keys: keep keys/ elsewhere, and workers cannot be brought back"
		}
		t.text("backup of host %s in %s: %s, %s, %s", d.HostID, d.File, entries(d.Entries), count(d.Workers, "worker"), keys)
		for _, m := range d.Missing {
			t.text("worker %s (%s) is not in it: %s", m.WorkerName, m.WorkerSerial, m.Reason)
		}
	})
	if err != nil || len(d.Missing) == 0 {
		return err
	}
	return &partlyError{fmt.Errorf("the files of %s could not be had", count(len(d.Missing), "worker"))}
}

// entries is n entries of the record, in words.
func entries(n uint64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
