// Command dals-host runs a host of workers and is the tool to use one: it forges
// workers from dropped plugin binaries, sends them signed envelopes, and checks
// the record of it all. docs/cli.md says what scripts may rely on.
//
// Every command is one file: flags, one call, print. Data goes to stdout, as
// text for people or as one JSON document; messages and errors go to stderr,
// lower case, with a hint where there is one. It exits 0 when done, 1 when
// something failed and 2 when the command line is wrong.
package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// version is set by the linker in released builds.
var version string

func main() {
	// What our parent left open is not for plugins and workers to inherit.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "error: close inherited descriptors to children:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal does not wait for a clean end.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// ownVersion is what this binary says of itself.
func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}
