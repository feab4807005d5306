package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host"
)

func serveCommand(a *app) *cobra.Command {
	var (
		config host.Config
		ports  string
		warm   []string
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the host in the foreground",
		Long: `Run the host in the foreground, until SIGTERM or Ctrl-C: then it finishes what is
in flight, for at most --drain, and detaches. Workers go on without it; the next
serve finds them, and gets the results of calls that were cut. A second signal
ends it at once. It prints a line that starts with "ready" on stdout once it
serves, and tells systemd (Type=notify, with KillMode=process and Delegate=yes).`,
		Example: `  dals-host serve
  dals-host serve --data-dir ./data --plugins ./plugins --launcher process
  dals-host serve --containerd /run/containerd/containerd.sock
  dals-host serve --http 127.0.0.1:8080 --log-level debug
  dals-host serve --warm template=4
  dals-host serve --userns`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Before anything is opened: a slip of the pen makes no data folder.
			if !slices.Contains([]string{"auto", "containerd", "process"}, config.Launcher) {
				return usagef("--launcher %s: use auto, containerd or process", config.Launcher)
			}
			if err := checkContainerd(config); err != nil {
				return err
			}
			if err := checkUserNS(config); err != nil {
				return err
			}
			if !slices.Contains([]string{"", "crun", "runc"}, config.Runtime) {
				return usagef("--runtime %s: use crun or runc", config.Runtime)
			}
			if _, _, err := net.SplitHostPort(config.HTTP); config.HTTP != "" && err != nil {
				return usagef("--http %s: use an address as in 127.0.0.1:8080", config.HTTP)
			}
			if err := notNegative("drain", config.Drain); err != nil {
				return err
			}
			if err := readPorts(ports, &config); err != nil {
				return err
			}
			if err := readWarm(warm, &config); err != nil {
				return err
			}
			dir, err := a.dataDir()
			if err != nil {
				return err
			}
			config.DataDir, config.Version, config.Logger = dir, ownVersion(), a.logger()
			config.LogGuard = []string{"/proc/self/exe", guardLogs, "--data-dir", dir}
			return a.serve(cmd.Context(), config)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&config.PluginDirs, "plugins", nil, "`FOLDER` of plugin binaries besides the data folder's plugins (repeatable)")
	flags.StringVar(&config.Launcher, "launcher", "auto", "what runs workers: auto, containerd or process")
	flags.StringVar(&config.Containerd, "containerd", "", "containerd to use: the `ADDRESS` of its socket, or private for one of the host's own (default what the workers are under, or else private)")
	flags.StringVar(&config.Runtime, "runtime", "", "OCI runtime of new containers: crun or runc (default the first that is installed)")
	flags.BoolVar(&config.UserNS, "userns", false, "give each new container a user namespace of its own")
	flags.StringVar(&config.HTTP, "http", "", "`ADDRESS` to answer /healthz at (default none)")
	flags.DurationVar(&config.Drain, "drain", 15*time.Second, "time for running calls to end once the host is told to; a task may take up to 5m")
	flags.StringVar(&ports, "ports", "", "`LOW-HIGH`: the range that workers' ports are taken from (default 20000-29999)")
	flags.StringArrayVar(&warm, "warm", nil, "`TYPE=N`: containers of that type's default version to make before they are asked for (repeatable)")
	return cmd
}

// checkContainerd refuses an address that cannot be one, or is for nothing.
func checkContainerd(c host.Config) error {
	switch {
	case c.Containerd == "" || c.Containerd == "private":
		return nil
	case !filepath.IsAbs(strings.TrimPrefix(c.Containerd, "unix://")):
		return usagef("--containerd %s: give the absolute path of its socket, or private", c.Containerd)
	case c.Launcher == "process":
		return usagef("--containerd %s: with --launcher process there are no containers", c.Containerd)
	}
	return nil
}

// checkUserNS refuses user namespaces where there are none to be had.
func checkUserNS(c host.Config) error {
	switch {
	case !c.UserNS:
		return nil
	case c.Launcher == "process":
		return usagef("--userns: with --launcher process there are no containers")
	case c.Containerd != "" && c.Containerd != "private":
		return usagef("--userns: not with --containerd %s, only with one of the host's own", c.Containerd)
	}
	return nil
}

// maxWarm is how many containers of one type may wait to be claimed: each takes
// memory for as long.
const maxWarm = 64

// readWarm reads how many workers are to be kept warm, by type.
func readWarm(asked []string, config *host.Config) error {
	for _, text := range asked {
		name, number, _ := strings.Cut(text, "=")
		n, err := strconv.Atoi(number)
		if _, twice := config.Warm[name]; err != nil || n < 1 || n > maxWarm || name == "" || twice {
			return usagef("--warm %s: use a type and a number from 1 to %d, once for each type, as in template=4", text, maxWarm)
		}
		if config.Warm == nil {
			config.Warm = map[string]int{}
		}
		config.Warm[name] = n
	}
	return nil
}

// readPorts reads the range that workers' ports are taken from. Workers that
// have a port outside of it keep theirs.
func readPorts(text string, config *host.Config) error {
	if text == "" {
		return nil
	}
	var err, notHigh error
	low, high, _ := strings.Cut(text, "-")
	config.PortLow, err = strconv.Atoi(low)
	config.PortHigh, notHigh = strconv.Atoi(high)
	if err != nil || notHigh != nil || config.PortHigh == 0 {
		return usagef("--ports %s: use two numbers as in 20000-29999", text)
	}
	if err := host.CheckPorts(config.PortLow, config.PortHigh); err != nil {
		return withHint(usagef("--ports: %w", err), hintOf(err))
	}
	return nil
}

func (a *app) serve(ctx context.Context, config host.Config) error {
	h, err := host.New(ctx, config)
	if err != nil {
		return fmt.Errorf("start host: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	select {
	case err := <-ended:
		return wrapRun(err)
	case <-h.Ready():
	}
	launcher, reason := h.LauncherName()
	fmt.Fprintf(a.stdout, "ready host=%s socket=%s launcher=%s (%s)\n", h.ID(), h.Socket(), launcher, reason)
	notify(config.Logger, daemon.SdNotifyReady)
	stopping := context.AfterFunc(ctx, func() { notify(config.Logger, daemon.SdNotifyStopping) })
	defer stopping()
	return wrapRun(<-ended)
}

func wrapRun(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("run host: %w", err)
}

// notify tells systemd where it asked to be told.
func notify(log hclog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd not notified", "state", state, "error", err)
	}
}

func (a *app) logger() hclog.Logger {
	colour := hclog.ColorOff
	if colourful(a.stderr) {
		colour = hclog.ForceColor
	}
	return hclog.New(&hclog.LoggerOptions{
		Name: "dals-host", Level: hclog.LevelFromString(a.logLevel), Output: a.stderr, JSONFormat: a.json, Color: colour,
	})
}
