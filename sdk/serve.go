package sdk

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk/wire"
)

// Serve is the whole main of a plugin binary; it does not return. The binary
// has three lives, picked by its environment:
//
//   - a host's probe asks it once what it provides, and ends it;
//   - in a worker's folder it is that worker, until SIGTERM;
//   - run by hand it says what it is and how to install it, and exits 1.
//
// A t that cannot be served is told to stderr in full, and the exit code is 1. What
// is wrong with the schemas of tasks is told by hand and to the probe, which keeps
// such a t from ever being a worker.
func Serve(t Type) {
	os.Exit(serve(t))
}

func serve(t Type) int {
	handshake := wire.Handshake()
	probed := os.Getenv(handshake.MagicCookieKey) == handshake.MagicCookieValue
	if dir := os.Getenv(wire.WorkerDirEnv); dir != "" && !probed {
		return serveWorker(t, dir)
	}
	c, err := t.check()
	if err != nil {
		printFaults(os.Stderr, t, err)
		return 1
	}
	if probed {
		return serveProbe(c)
	}
	printInstructions(os.Stdout, c)
	return 1
}

// serveProbe answers a host's probe until the host ends it.
func serveProbe(c *checkedType) int {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: wire.Handshake(),
		Plugins:         wire.PluginSet(&describer{descriptor: c.describe()}),
		GRPCServer:      plugin.DefaultGRPCServer,
		Logger:          newLogger(c.Type, hclog.Warn),
	})
	return 1 // only reached when go-plugin could not start
}

// serveWorker is a worker until SIGTERM.
func serveWorker(t Type, dir string) int {
	// The first key takes a process a millisecond, for a table of Go's; nobody waits
	// for it while the worker opens its folder.
	go ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	log := newLogger(t, hclog.Info)
	// A library that prints must not end up in nowhere; stderr is the log.
	if err := unix.Dup3(2, 1, 0); err != nil {
		log.Error("could not claim stdout", "error", err)
		return 1
	}
	// Whoever reads the log may go away with the host; the worker stays.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := t.serveDir(ctx, t.checkProbed, dir, log); err != nil {
		log.Error("worker cannot go on", "error", err)
		return 1
	}
	return 0
}

// newLogger writes lines that a host can parse, to the only stream that is a log
// in every life.
func newLogger(t Type, level hclog.Level) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name:       t.Name,
		Level:      level,
		Output:     os.Stderr,
		JSONFormat: true,
	})
}

func printFaults(w io.Writer, t Type, err error) {
	fmt.Fprintf(w, "error: worker type %q cannot be served:\n", t.Name)
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "  - %s\n", strings.TrimSuffix(line, "\n"))
	}
	fmt.Fprintln(w, "hint: mend the sdk.Type that main gives to sdk.Serve")
}

func printInstructions(w io.Writer, c *checkedType) {
	fmt.Fprintf(w, "%s %s: %s\n\ntasks:\n", c.Name, c.Version, c.Summary)
	for _, t := range c.Tasks {
		fmt.Fprintf(w, "  %-24s %s\n", t.Kind, t.Summary)
	}
	fmt.Fprintf(w, "\nThis is a worker type, not a program to run by hand.\n"+
		"To install it, drop this file into the plugins folder of a dals-host,\n"+
		"then: dals-host forge --type %s --name NAME --class-code A1\n", c.Name)
}
