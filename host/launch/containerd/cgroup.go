package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups are the control groups of one host's workers, in every hierarchy
// there is: one with cgroup v2, one per controller with v1, both in hybrids.
type cgroups struct {
	parent string // the host's group, relative to a hierarchy
	mount  string
	roots  []string
}

// newCgroups finds the hierarchies at mount. Where there is none it is an error:
// a look for processes in no group at all would prove every worker gone.
func newCgroups(mount, hostID string) (cgroups, error) {
	roots := []string{mount}
	_, err := os.Stat(filepath.Join(mount, "cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) {
		roots, err = hierarchies(mount)
	}
	if err == nil && len(roots) == 0 {
		err = fmt.Errorf("none at %s", mount)
	}
	if err != nil {
		return cgroups{}, unavailable(cgroupHint, "find cgroups: %w", err)
	}
	return cgroups{parent: namespace(hostID), mount: mount, roots: roots}, nil
}

// isV2 says that there is nothing but cgroup v2.
func (c cgroups) isV2() bool { return slices.Contains(c.roots, c.mount) }

// hierarchies are the cgroup v1 hierarchies below mount, and that of v2 in hybrids.
func hierarchies(mount string) ([]string, error) {
	entries, err := os.ReadDir(mount)
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, e := range entries {
		if !e.IsDir() { // a link to joined controllers
			continue
		}
		root := filepath.Join(mount, e.Name())
		switch _, err := os.Stat(filepath.Join(root, "cgroup.procs")); {
		case err == nil:
			roots = append(roots, root)
		case !errors.Is(err, os.ErrNotExist): // nothing is mounted there
			return nil, err
		}
	}
	return roots, nil
}

// path is the worker's group as the container runtime wants it.
func (c cgroups) path(serial worker.Serial) string { return "/" + c.parent + "/" + string(serial) }

// processes lists what still runs in the worker's groups.
func (c cgroups) processes(serial worker.Serial) ([]int, error) {
	var pids []int
	for _, root := range c.roots {
		found, err := readPIDs(filepath.Join(root, c.path(serial), "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) { // ENODEV: deleted meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read cgroup: %w", err)
		}
		pids = append(pids, found...)
	}
	return pids, nil
}

// members are the processes in one of the worker's groups, without proof that
// there are no others: a quick look.
func (c cgroups) members(serial worker.Serial) []int {
	for _, root := range []string{filepath.Join(c.mount, "pids"), c.mount} { // v1 and v2
		if pids, err := readPIDs(filepath.Join(root, c.path(serial), "cgroup.procs")); err == nil {
			return pids
		}
	}
	return nil
}

func readPIDs(file string) ([]int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// all are the host's workers that have groups.
func (c cgroups) all() []worker.Serial {
	entries, _ := os.ReadDir(filepath.Join(c.roots[0], c.parent))
	all := make([]worker.Serial, 0, len(entries))
	for _, e := range entries {
		if serial, err := worker.ParseSerial(e.Name()); err == nil {
			all = append(all, serial)
		}
	}
	return all
}

// killAll kills what still runs in the worker's groups and says whether that
// was anything.
func (c cgroups) killAll(serial worker.Serial) (found bool, err error) {
	pids, err := c.processes(serial)
	for _, pid := range pids {
		err = errors.Join(err, c.kill(serial, pid))
	}
	return len(pids) > 0, err
}

// kill kills process pid if, once held, it still is in the worker's groups.
func (c cgroups) kill(serial worker.Serial, pid int) error {
	id, err := pidfd.Identify(pid)
	if err != nil {
		return nil // it has ended
	}
	process, err := pidfd.Open(id)
	if errors.Is(err, pidfd.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer process.Close()
	now, err := c.processes(serial)
	if err != nil || !slices.Contains(now, pid) {
		return err
	}
	return process.Signal(unix.SIGKILL)
}

// oomKills counts how often the kernel has killed for memory in the worker's group.
// Where it has, group is a number that no group of another run has.
func (c cgroups) oomKills(serial worker.Serial) (n int, group uint64) {
	for _, file := range []string{
		filepath.Join(c.mount, "memory", c.path(serial), "memory.oom_control"), // v1
		filepath.Join(c.mount, c.path(serial), "memory.events"),                // v2
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			if count, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("oom_kill ")); ok {
				n, _ = strconv.Atoi(string(count))
			}
		}
		var stat unix.Stat_t
		if n > 0 && unix.Stat(filepath.Dir(file), &stat) == nil {
			group = stat.Ino
		}
		return n, group
	}
	return 0, 0
}

// remove deletes the worker's groups, which must be empty.
func (c cgroups) remove(serial worker.Serial) error { return c.removeDirs(c.path(serial)) }

// removeAll deletes the host's groups, which must be empty.
func (c cgroups) removeAll() error { return c.removeDirs(c.parent) }

func (c cgroups) removeDirs(name string) error {
	for _, root := range c.roots {
		if err := unix.Rmdir(filepath.Join(root, name)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", filepath.Join(root, name), err)
		}
	}
	return nil
}

// limitsSwap says whether the machine can bound swap beside memory.
func (c cgroups) limitsSwap() bool {
	if c.isV2() {
		return true
	}
	_, err := os.Stat(filepath.Join(c.mount, "memory", "memory.memsw.limit_in_bytes"))
	return err == nil
}
