package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// gauge is where the kernel tells one number of a group.
type gauge struct {
	controller string // with v1: its hierarchy
	file       string
	key        string // of the line with the number; empty where the file is the number
}

// gauges are where a version of cgroups tells what a group uses.
type gauges struct {
	memory, cache, cpu, pids gauge
	tick                     time.Duration // what cpu counts
}

var (
	gaugesV1 = gauges{
		memory: gauge{"memory", "memory.usage_in_bytes", ""}, cache: gauge{"memory", "memory.stat", "total_inactive_file"},
		cpu: gauge{"cpuacct", "cpuacct.usage", ""}, pids: gauge{"pids", "pids.current", ""}, tick: time.Nanosecond,
	}
	gaugesV2 = gauges{
		memory: gauge{"", "memory.current", ""}, cache: gauge{"", "memory.stat", "inactive_file"},
		cpu: gauge{"", "cpu.stat", "usage_usec"}, pids: gauge{"", "pids.current", ""}, tick: time.Microsecond,
	}
)

// Usage reads what the worker's group uses from the kernel: four small files, and
// no word with containerd.
func (l *Launcher) Usage(_ context.Context, serial worker.Serial) (worker.Usage, error) {
	return l.cgroups.usage(serial)
}

func (c cgroups) usage(serial worker.Serial) (u worker.Usage, err error) {
	of := gaugesV1
	if c.isV2() {
		of = gaugesV2
	}
	read := func(g gauge) int64 {
		n, failed := g.read(filepath.Join(c.mount, g.controller, c.path(serial), g.file))
		err = errors.Join(err, failed)
		return n
	}
	u = worker.Usage{
		At: time.Now(), MemoryBytes: read(of.memory) - read(of.cache),
		CPU: time.Duration(read(of.cpu)) * of.tick, PIDs: read(of.pids),
	}
	u.MemoryBytes = max(u.MemoryBytes, 0) // the two are not read at one moment
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV):
		return worker.Usage{}, fmt.Errorf("read usage of %s: it does not run: %w", serial, worker.ErrNotFound)
	case err != nil:
		return worker.Usage{}, fmt.Errorf("read usage of %s: %w", serial, err)
	}
	return u, nil
}

// read finds the number in the file at path.
func (g gauge) read(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(data))
	if g.key != "" {
		var found bool
		for line := range strings.Lines(text) {
			if text, found = strings.CutPrefix(strings.TrimSpace(line), g.key+" "); found {
				break
			}
		}
		if !found {
			return 0, fmt.Errorf("%s has no %s", g.file, g.key)
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", g.file, err)
	}
	return n, nil
}
