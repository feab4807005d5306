package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
)

// app is one run of the command: its streams and the global flags.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	dataDirFlag string
	hostFlag    string
	keyFlag     string
	logLevel    string
	json        bool
	quiet       bool
}

// run is the whole command but for the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	ran, err := root.ExecuteContextC(ctx)
	return a.report(ctx, ran, err)
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "dals-host",
		Short: "Forge workers from plugin binaries and send them signed envelopes",
		Long: `dals-host runs workers: a dropped plugin binary becomes a worker type, forge makes
workers of it, each in a container of its own with its own key, and every call to
one is a signed envelope that the host checks, records and routes.`,
		Example: `  dals-host serve
  dals-host forge --type template --name nora --class-code A1
  dals-host send nora template.echo '{"message": "hello"}'
  dals-host vault verify`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if hclog.LevelFromString(a.logLevel) == hclog.NoLevel {
				return usagef("--log-level %q is not trace, debug, info, warn, error or off", a.logLevel)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.dataDirFlag, "data-dir", "", "the host's data folder (DALS_DATA_DIR; default /var/lib/dals as root, else $XDG_STATE_HOME/dals)")
	flags.StringVar(&a.hostFlag, "host", "", "socket of the running host (DALS_HOST; default the data folder's host.sock)")
	flags.StringVar(&a.keyFlag, "key", "", "client key to sign with (DALS_KEY; default the operator's)")
	flags.BoolVar(&a.json, "json", false, "print one JSON document instead of text")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print no messages but errors")
	flags.StringVar(&a.logLevel, "log-level", "info", "trace, debug, info, warn, error or off")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(
		serveCommand(a), downCommand(a), typesCommand(a), pluginsCommand(a),
		forgeCommand(a), workersCommand(a), workerCommand(a),
		stopCommand(a), startCommand(a), restartCommand(a), upgradeCommand(a), retireCommand(a),
		sendCommand(a), logsCommand(a), eventsCommand(a), vaultCommand(a), verifyCommand(a),
		clientCommand(a), backupCommand(a), restoreCommand(a), recoverCommand(a), gcCommand(a),
		doctorCommand(a), versionCommand(a), guardLogsCommand(a),
	)
	return root
}

// unknownCommand refuses arguments where a command is expected.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usagef("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 1 // letter that may be wrong
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		slices.Sort(near)
		return withHint(err, "did you mean "+strings.Join(near, ", ")+"?")
	}
	return err
}

// group is a command that only holds others.
func group(cmd *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	cmd.Args = unknownCommand
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return usagef("%s needs a command", cmd.CommandPath())
	}
	cmd.AddCommand(subcommands...)
	return cmd
}

// exactly takes n arguments, as the command's Use line names them.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

func between(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return usagef("%s: too few arguments", cmd.CommandPath())
		case len(args) > high:
			return usagef("%s: unexpected argument %q", cmd.CommandPath(), args[high])
		}
		return nil
	}
}

// needs says which of the flags were not given.
func needs(cmd *cobra.Command, flags ...string) error {
	var missing []string
	for _, flag := range flags {
		if !cmd.Flags().Changed(flag) {
			missing = append(missing, "--"+flag)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return usagef("%s needs %s", cmd.CommandPath(), strings.Join(missing, ", "))
}

func notNegative(flag string, d time.Duration) error {
	if d < 0 {
		return usagef("--%s %s is negative", flag, d)
	}
	return nil
}

// dataDir is the folder of the host on this machine.
func (a *app) dataDir() (string, error) {
	dir := firstOf(a.dataDirFlag, os.Getenv("DALS_DATA_DIR"))
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/lib/dals"
	case os.Getenv("XDG_STATE_HOME") != "":
		dir = filepath.Join(os.Getenv("XDG_STATE_HOME"), "dals")
	default:
		home, err := os.UserHomeDir()
		if err != nil {
			return "", withHint(fmt.Errorf("find data folder: %w", err), "name it with --data-dir")
		}
		dir = filepath.Join(home, ".local", "state", "dals")
	}
	return filepath.Abs(dir)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
