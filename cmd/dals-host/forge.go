package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

// maxConfig bounds a config file, in bytes.
const maxConfig = 1 << 20

func forgeCommand(a *app) *cobra.Command {
	var (
		request    client.ForgeRequest
		configFile string
		settings   []string
		listTypes  bool
		count      int
	)
	var limits limitFlags
	cmd := &cobra.Command{
		Use:   "forge --type TYPE --name NAME --class-code CODE",
		Short: "Forge a worker, or many",
		Long: `Forge one worker: numbers, port, key, certificate, files and signed manifest, then
its container, until its first heartbeat; or nothing at all. The same command
again finds the worker that it made. Another request for a taken name fails.

With --count K it forges NAME-1 to NAME-K, several at a time. What can be made is
made, also when others fail or the command is interrupted; then it exits with 3 and
lists what is missing. --json gives {"made": [...], "failed": [...]}.`,
		Example: `  dals-host forge --list-types
  dals-host forge --type template --name nora --class-code A1 --dry-run
  dals-host forge --type template --name nora --class-code A1
  dals-host forge --type template --name nora --class-code A1 --plan-hash p3-…
  dals-host forge --type template --name crowd --class-code A1 --count 200
  dals-host forge --like nora --name tom
  dals-host forge --type mirror --name far --class-code A1 --grant egress:example.org:443
  dals-host forge --type album --name pics --class-code A1 --mount /srv/photos:/mnt/photos:ro
  dals-host forge --type template --name nora --class-code A1 --memory 64MiB --cpus 0.5 --pids 64
  dals-host forge --type ledger --name books --class-code 300.100.000 --set max_record_bytes=4096`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if listTypes {
				return a.listTypes(cmd.Context())
			}
			if err := checkForge(cmd, request, count); err != nil {
				return err
			}
			var err error
			if request.Limits, err = limits.read(cmd); err != nil {
				return err
			}
			config, err := a.readConfig(configFile, settings)
			if err != nil {
				return err
			}
			if config != nil {
				request.Config = config
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				if cmd.Flags().Changed("count") {
					return a.forgeMany(cmd.Context(), c, request, count)
				}
				return a.forge(cmd.Context(), c, request)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&request.Type, "type", "", "worker type")
	flags.StringVar(&request.Name, "name", "", "name of the worker")
	flags.StringVar(&request.ClassCode, "class-code", "", "class code: A1 to Z999, or NNN.NNN.NNN")
	flags.StringVar(&request.Version, "version", "", "version of the type (default the current one)")
	flags.StringVar(&configFile, "config", "", "`FILE` with the worker's config, a JSON object; - is stdin")
	flags.StringArrayVar(&settings, "set", nil, "set `KEY=VALUE` in the config; a value that is not JSON is text (repeatable)")
	flags.BoolVar(&request.DryRun, "dry-run", false, "print the plan and make nothing")
	flags.StringVar(&request.PlanHash, "plan-hash", "", "forge only what a dry run with this plan `HASH` said")
	flags.BoolVar(&listTypes, "list-types", false, "list the worker types instead")
	flags.DurationVar(&request.Timeout, "timeout", 0, "bound on the whole forge (default the host's)")
	flags.IntVar(&count, "count", 0, fmt.Sprintf("forge `K` workers, NAME-1 to NAME-K (up to %d)", maxCount))
	flags.StringArrayVar(&request.Grants, "grant", nil, "let the worker have this `CAPABILITY` of those that its type asks for (repeatable)")
	flags.StringArrayVar(&request.Mounts, "mount", nil, "show the worker a folder of this machine, `SOURCE:/mnt/NAME[:ro]`, that its type asks for (repeatable)")
	flags.StringVar(&request.Like, "like", "", "type, version, class code, config, grants and limits of this `WORKER`, where no others are given")
	limits.add(flags)
	flags.BoolVar(&request.NoStart, "no-start", false, "leave the worker stopped")
	completeFlag(cmd, "type", a.typeNames)
	completeFlag(cmd, "like", a.workerNames)
	return cmd
}

// checkForge says what is wrong with the flags.
func checkForge(cmd *cobra.Command, r client.ForgeRequest, count int) error {
	required := []string{"type", "name", "class-code"}
	if r.Like != "" {
		required = []string{"name"}
	}
	if err := needs(cmd, required...); err != nil {
		return err
	}
	if cmd.Flags().Changed("count") {
		switch {
		case count < 1 || count > maxCount:
			return usagef("--count %d is not from 1 to %d", count, maxCount)
		case r.DryRun || r.PlanHash != "":
			return usagef("a plan is of one worker: leave out --count, or --dry-run and --plan-hash")
		}
	}
	return notNegative("timeout", r.Timeout)
}

func (a *app) forge(ctx context.Context, c *client.Client, r client.ForgeRequest) error {
	made, err := c.Forge(ctx, r)
	if err != nil {
		return err
	}
	switch {
	case made.DryRun:
		a.message("nothing was made: this is what forge would do")
	case made.Existed:
		a.message("worker %s exists: the same request made it before", made.WorkerName)
	}
	return a.show(made, func(t *table) {
		if !made.DryRun {
			workerText(t, made.Worker)
			return
		}
		t.row("", "STEP", "MAKES")
		for i, s := range made.Plan {
			t.row(strconv.Itoa(i+1), s.Step, s.Makes)
		}
		if len(made.Files) > 0 {
			t.text("")
			t.row("MODE", "SIZE", "SHA256", "FILE")
		}
		for _, f := range made.Files {
			size, sum := strconv.FormatInt(f.Size, 10), f.SHA256
			if sum == "" {
				size, sum = "-", "-"
			}
			t.row(f.Mode, size, sum, f.Path)
		}
		t.text("plan %s", made.PlanHash)
	})
}

// readConfig is the config file with the settings over it; nil when there is
// neither.
func (a *app) readConfig(file string, settings []string) (json.RawMessage, error) {
	if file == "" && len(settings) == 0 {
		return nil, nil
	}
	config := map[string]json.RawMessage{}
	if file != "" {
		data, err := a.readInput(file, maxConfig)
		if err != nil {
			return nil, fmt.Errorf("read config: %w", err)
		}
		if err := json.Unmarshal(data, &config); err != nil {
			return nil, fmt.Errorf("read config: not a JSON object: %w", err)
		}
		if config == nil {
			return nil, errors.New("read config: null is not a JSON object")
		}
	}
	for _, s := range settings {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, usagef("--set %q is not KEY=VALUE", s)
		}
		if config[key] = json.RawMessage(value); json.Valid([]byte(value)) {
			continue
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", key, err)
		}
		config[key] = text
	}
	return json.Marshal(config)
}

// readInput reads a file, or stdin for "-", up to limit bytes.
func (a *app) readInput(file string, limit int64) ([]byte, error) {
	from := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", file, limit)
	}
	return data, nil
}
