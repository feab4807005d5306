package launchtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
)

// Leaks tells what of a host is still on the machine: processes, mounts,
// cgroups, and files outside of the workers' folders and the store.
func Leaks(cfg Config) []string {
	var left []string
	ours := func(s string) bool { return strings.Contains(s, cfg.HostID) || strings.Contains(s, cfg.DataDir) }
	_ = pidfd.Each(func(pid int, _ pidfd.Stat) {
		if pid != os.Getpid() && (slices.ContainsFunc(pidfd.Cmdline(pid), ours) || slices.ContainsFunc(pidfd.Environ(pid), ours)) {
			left = append(left, "process "+strings.Join(pidfd.Cmdline(pid), " "))
		}
	})
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if ours(line) {
			left = append(left, "mount "+line)
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/run", "/dev/shm"} {
		_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && ours(path) {
				left = append(left, path)
			}
			return nil // what vanishes or is closed to us is not ours
		})
	}
	entries, _ := os.ReadDir(cfg.DataDir)
	for _, e := range entries {
		if e.Name() != "store" && e.Name() != "workers" {
			left = append(left, filepath.Join(cfg.DataDir, e.Name()))
		}
	}
	return left
}
