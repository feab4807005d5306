package containerd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// The OCI runtimes that workers can run under. crun starts a container at half
// of runc's cost and is preferred where both are installed.
const (
	Crun = "crun"
	Runc = "runc"
)

// findRuntime is the path of the wanted runtime, or with an empty name of the
// best that is installed, and its name with its version.
func findRuntime(ctx context.Context, wanted string) (path, version string, err error) {
	switch wanted {
	case "", Crun, Runc:
	default:
		return "", "", fmt.Errorf("container runtime %.40q: use %s or %s: %w", wanted, Crun, Runc, worker.ErrInvalid)
	}
	var faults []error
	for _, name := range []string{Crun, Runc} {
		if wanted != "" && wanted != name {
			continue
		}
		path := lookPath(name)
		if path == "" {
			faults = append(faults, fmt.Errorf("%s is not installed", name))
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		if err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			return path, strings.Replace(line, " version ", " ", 1), nil
		}
		faults = append(faults, fmt.Errorf("%s --version: %w", path, err))
	}
	return "", "", unavailable(installHint, "%w", errors.Join(faults...))
}

// unified is where hybrids of both cgroup versions have the hierarchy of v2.
const unified = cgroupRoot + "/unified"

// isHybrid says whether this machine has cgroups of both versions. crun refuses
// those where the hierarchy of v2 has controllers, as long as it sees it.
func isHybrid() (bool, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(unified, &fs)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", unified, err)
	}
	return fs.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// apart runs start, which starts a process, in a mount namespace that change has
// changed. Mounts that others make later are seen in it, and what they unmount goes
// from it.
func apart(change, start func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and is what /proc/self tells of. While this
			// goroutine has it, another thread does the work.
			defer runtime.UnlockOSThread()
			done <- apart(change, start)
			return
		}
		// Never unlocked: the thread ends with this goroutine, and nobody else gets
		// to run in its namespace.
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
		}
		if err != nil {
			err = fmt.Errorf("make a mount namespace: %w", err)
		} else if err = change(); err == nil {
			err = start()
		}
		done <- err
	}()
	return <-done
}

// hideUnified takes the unified hierarchy out of this mount namespace.
func hideUnified() error {
	hybrid, err := isHybrid()
	if err != nil || !hybrid {
		return err
	}
	if err := unix.Unmount(unified, 0); err != nil {
		return fmt.Errorf("hide %s: %w", unified, err)
	}
	return nil
}

// guardedEnv tells crun and runc that they may look whether nobody can write to
// what they are executed from.
const guardedEnv = "_LIBCONTAINER_CLONED_BINARY=1"

// guard makes the runtime's binary read-only in this mount namespace. A container
// could write to the runtime that starts it, by /proc, if that could be written to
// (CVE-2019-5736). Against this crun and runc execute themselves once more whenever
// they are called, from a read-only mount that they make for it; under guardedEnv
// they do not where they find themselves on one.
func guard(path string) error {
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &readOnly); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}
