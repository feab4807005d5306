package main

import (
	"fmt"
	"math"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// limitFlags are what a forged worker may use.
type limitFlags struct {
	memory string
	cpus   float64
	pids   int64
}

func (l *limitFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&l.memory, "memory", "", "memory that it may use, `SIZE` as in 64MiB (default the type's)")
	flags.Float64Var(&l.cpus, "cpus", 0, "cores that it may use, `N` as in 0.5 (default the type's)")
	flags.Int64Var(&l.pids, "pids", 0, "processes and threads that it may have, `N` (default the type's)")
}

// read is what was given, inside the bounds that a host has.
func (l *limitFlags) read(cmd *cobra.Command) (client.Limits, error) {
	var limits worker.Limits
	given := cmd.Flags().Changed
	if given("memory") {
		bytes, err := humanize.ParseBytes(l.memory)
		if err != nil || bytes == 0 || bytes > math.MaxInt64 {
			return client.Limits{}, usagef("--memory %q is not a size as 64MiB or 1GiB", l.memory)
		}
		limits.MemoryBytes = int64(bytes)
	}
	if given("cpus") {
		millis := math.Round(l.cpus * 1000)
		if !(millis >= worker.MinCPUMillis && millis <= worker.MaxCPUMillis) { // also what is no number
			return client.Limits{}, usagef("--cpus %v is not from %v to %v", l.cpus, worker.MinCPUMillis/1000.0, worker.MaxCPUMillis/1000.0)
		}
		limits.CPUMillis = int64(millis)
	}
	if given("pids") {
		if l.pids == 0 {
			return client.Limits{}, usagef("--pids 0: leave it out for the type's own limit")
		}
		limits.PIDs = l.pids
	}
	if err := limits.Check(); err != nil {
		return client.Limits{}, usagef("%w", err)
	}
	return client.Limits(limits), nil
}

// mib is a size for people.
func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
