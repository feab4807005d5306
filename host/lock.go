package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// lockPatience is how long a host that was killed a moment ago may take to let
// go of its lock.
const lockPatience = 2 * time.Second

// lockFolder makes the data folder if need be and takes it for this host alone.
func (h *Host) lockFolder(ctx context.Context) error {
	for _, dir := range []string{h.paths.data, h.paths.plugins} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return worker.Hint(fmt.Errorf("make data folder: %w", err), "the host's user must be able to write there; or use --data-dir")
		}
	}
	if err := checkOwners(h.paths.data); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	// Also where its mode is right: it shows whether the folder can be changed.
	err := os.Chmod(h.paths.data, 0o700)
	switch {
	case errors.Is(err, syscall.EROFS):
		return worker.Hint(fmt.Errorf("data folder cannot be written: %w", err), "make its file system writable (see mount and dmesg), or use --data-dir")
	case err != nil:
		return worker.Hint(fmt.Errorf("close data folder to others: %w", err), "the data folder must belong to the host's user")
	}
	h.lock = flock.New(h.paths.lock, flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	locked, err := h.lock.TryLockContext(ctx, 10*time.Millisecond)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("lock data folder: %w", err)
	}
	if !locked {
		return worker.Hint(fmt.Errorf("data folder %s: another host%s runs on it: %w", h.paths.data, lockHolder(h.paths.lock), worker.ErrConflict),
			"use that host, end it with dals-host down, or give another --data-dir")
	}
	h.onClose(h.lock.Unlock)
	return nil
}

// lockHolder tells which process has the lock, as the kernel lists it; nothing
// where that cannot be read.
func lockHolder(path string) string {
	var st unix.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err = errors.Join(err, unix.Stat(path, &st)); err != nil {
		return ""
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		const kind, pid, what = 1, 4, 5
		if f := strings.Fields(line); len(f) > what && f[kind] == "FLOCK" && f[what] == file {
			return fmt.Sprintf(" (pid %s)", f[pid])
		}
	}
	return ""
}

// listener tells which process listens at a socket; nothing where none says so.
func listener(address *net.UnixAddr) (who string) {
	c, err := net.DialUnix("unix", nil, address)
	if err != nil {
		return ""
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who = fmt.Sprintf(" (pid %d)", peer.Pid)
		}
	})
	return who
}

// checkOwners refuses a data folder that somebody else could swap for another:
// what lies in it is trusted, and a root host executes from it. It looks at the
// path as it is written and as its links lead.
func checkOwners(dir string) error {
	written, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	led, err := filepath.EvalSymlinks(written)
	if err != nil {
		return err
	}
	info, err := os.Stat(led)
	if err != nil {
		return err
	}
	if ownerOf(info) != os.Geteuid() {
		return worker.Hint(fmt.Errorf("%s does not belong to the host's user: %w", led, worker.ErrRefused), "use a folder of your own with --data-dir")
	}
	for _, path := range []string{written, led} {
		for path != filepath.Dir(path) {
			path = filepath.Dir(path)
			info, err := os.Lstat(path)
			if err != nil {
				return err
			}
			open := info.Mode().Perm()&0o022 != 0 && info.Mode()&(fs.ModeSticky|fs.ModeSymlink) == 0
			if owner := ownerOf(info); owner != 0 && owner != os.Geteuid() || open {
				return worker.Hint(fmt.Errorf("others can change %s (owner %d, mode %04o): %w", path, owner, info.Mode().Perm(), worker.ErrRefused),
					"the folders above the data folder must belong to root or the host's user, and be writable by nobody else; or use --data-dir")
			}
		}
	}
	return nil
}

func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// lockIdentity takes the host's id for this process alone: a second host on a
// copy of the data folder would take over the first one's workers and write
// another history under the same key. The name is abstract, so that it goes with
// the process.
func (h *Host) lockIdentity(ctx context.Context) error {
	address := &net.UnixAddr{Name: "@dals-host-" + h.keys.HostID(), Net: "unix"}
	l, err := backoff.Retry(ctx, func() (*net.UnixListener, error) {
		l, err := net.ListenUnix("unix", address)
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			err = backoff.Permanent(err)
		}
		return l, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(20*time.Millisecond)), backoff.WithMaxElapsedTime(lockPatience))
	if errors.Is(err, syscall.EADDRINUSE) {
		return worker.Hint(fmt.Errorf("host %s%s runs on another data folder: %w", h.keys.HostID(), listener(address), worker.ErrConflict),
			"this folder is a copy of that host's: end that host first, or give another --data-dir")
	}
	if err != nil {
		return fmt.Errorf("lock identity: %w", err)
	}
	h.onClose(l.Close)
	return nil
}
