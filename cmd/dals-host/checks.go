package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host"
	"github.com/dals-host/dals-host/sdk/client"
)

// What a file system should have free, in bytes.
const littleSpace, noSpace = 1 << 30, 64 << 20

func checkUser() finding {
	if os.Geteuid() == 0 {
		return ok("root")
	}
	return warn("run the host as root", "not root: workers are plain processes without isolation")
}

// checkContainers looks for what the containerd launcher needs. Without root it
// is not used.
func checkContainers(ctx context.Context) finding {
	by, err := host.CheckContainers(ctx)
	switch {
	case err == nil:
		if err := host.CheckUserNamespaces(ctx); err != nil {
			return ok("workers can run in containers: %s; without user namespaces: %v", by, err)
		}
		return ok("workers can run in containers: %s; user namespaces (serve --userns) can be had", by)
	case os.Geteuid() != 0:
		return warn(hintOf(err), "%v", err)
	}
	return fail(hintOf(err), "%v", err)
}

// checkPorts looks whether the kernel gives workers' ports to others.
func checkPorts() finding {
	if err := host.CheckPorts(0, 0); err != nil {
		return fail(hintOf(err), "%v", err)
	}
	return ok("workers have ports of their own")
}

func checkFolder(dir string) finding {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return ok("%s is not there yet: serve makes it", dir)
	case err != nil:
		return fail("run as the host's user or as root", "%v", err)
	case !info.IsDir():
		return fail("give another --data-dir", "%s is no folder", dir)
	}
	if mode := info.Mode().Perm(); mode != 0o700 {
		return fail("chmod 700 "+dir, "%s has mode %04o, not 0700", dir, mode)
	}
	if system, known := info.Sys().(*syscall.Stat_t); known && int(system.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		return fail("run as the host's user or as root", "%s belongs to uid %d", dir, system.Uid)
	}
	return ok("%s", dir)
}

// checkFileSystem looks at the file system that holds or will hold dir.
func checkFileSystem(dir string) finding {
	var fs unix.Statfs_t
	at := dir
	for unix.Statfs(at, &fs) != nil {
		if at == filepath.Dir(at) {
			return fail("give another --data-dir", "no file system for %s", dir)
		}
		at = filepath.Dir(at)
	}
	free := fs.Bavail * uint64(fs.Bsize)
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		return fail("give another --data-dir", "%s is read-only", at)
	case fs.Flags&unix.ST_NOEXEC != 0:
		return fail("mount it with exec, or give another --data-dir", "%s is mounted noexec: plugins cannot run from it", at)
	case free < noSpace:
		return fail("free some space, or give another --data-dir", "%d MiB free at %s", free>>20, at)
	case free < littleSpace:
		return warn("free some space", "%d MiB free at %s", free>>20, at)
	}
	return ok("%d MiB free at %s", free>>20, at)
}

func (a *app) checkHost(ctx context.Context) finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	socket, err := a.socket()
	if err != nil {
		return fail("", "%v", err)
	}
	var status client.Status
	err = a.with(ctx, func(c *client.Client) (err error) {
		status, err = c.Status(ctx)
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return warn("dals-host serve", "no host runs: there is no %s", socket)
	}
	if err != nil {
		return fail(firstOf(hintOf(err), "dals-host serve"), "%v", err)
	}
	if len(status.Degraded) > 0 {
		return warn("dals-host serve --log-level debug tells more", "host %s is degraded: %s", status.HostID, strings.Join(status.Degraded, "; "))
	}
	return ok("host %s, version %s, pid %d, launcher %s", status.HostID, status.Version, status.PID, status.Launcher)
}
