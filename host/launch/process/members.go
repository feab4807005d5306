package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// markVar is the environment variable by which a worker's processes are found.
const markVar = "DALS_WORKER_MARK"

func (l *Launcher) mark(serial worker.Serial) string {
	return markVar + "=" + l.host + "/" + string(serial)
}

// clear kills every process of the worker until none is left and its lock is
// free: then no process can be forked from it any more.
func (l *Launcher) clear(ctx context.Context, spec launch.Spec) error {
	err := poll(ctx, func() (bool, error) {
		left, err := l.members(spec)
		if err != nil {
			return false, err
		}
		for _, pid := range left {
			if err := l.kill(pid, spec); err != nil {
				return false, err
			}
		}
		if len(left) > 0 {
			return false, nil
		}
		return lockFree(l.lockPath(spec.Serial))
	})
	if err != nil {
		return fmt.Errorf("end processes left behind: %w", err)
	}
	return nil
}

// kill kills process pid if, once held, it still is one of the worker's.
func (l *Launcher) kill(pid int, spec launch.Spec) error {
	id, err := pidfd.Identify(pid)
	if err != nil {
		return nil // it has ended
	}
	proc, err := pidfd.Open(id)
	if errors.Is(err, pidfd.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Close()
	if !l.sieve(spec).holds(pid) {
		return nil
	}
	return proc.Signal(unix.SIGKILL)
}

// members lists the processes of the worker.
func (l *Launcher) members(spec launch.Spec) ([]int, error) {
	var pids []int
	s := l.sieve(spec)
	err := pidfd.Each(func(pid int, _ pidfd.Stat) {
		if s.holds(pid) {
			pids = append(pids, pid)
		}
	})
	return pids, err
}

// leader is the worker's first process: it carries the mark and leads its
// session.
func (l *Launcher) leader(spec launch.Spec) (pid int, found bool, err error) {
	mark := l.mark(spec.Serial)
	err = pidfd.Each(func(p int, st pidfd.Stat) {
		if st.Session != p || !slices.Contains(pidfd.Environ(p), mark) {
			return
		}
		if uid, ok := pidfd.UID(p); ok && uid == spec.UID {
			pid, found = p, true
		}
	})
	return pid, found, err
}

// sieve tells one worker's processes from all others.
type sieve struct {
	mark   string
	uid    int
	ownUID bool        // uid is the worker's own
	lock   unix.Stat_t // zero where there is no lock file
}

func (l *Launcher) sieve(spec launch.Spec) sieve {
	s := sieve{mark: l.mark(spec.Serial), uid: spec.UID, ownUID: spec.UID != os.Geteuid()}
	_ = unix.Stat(l.lockPath(spec.Serial), &s.lock)
	return s
}

func (s sieve) holds(pid int) bool {
	if pid == os.Getpid() {
		return false
	}
	if s.ownUID {
		// Environment, descriptors and namespaces are the worker's to change. Its uid
		// is not, and it is nobody else's.
		uid, ok := pidfd.UID(pid)
		return ok && uid == s.uid || s.hasLock(pid)
	}
	for _, v := range pidfd.Environ(pid) {
		if strings.HasPrefix(v, markVar+"=") {
			return v == s.mark // another mark: another worker
		}
	}
	return s.hasLock(pid)
}

func (s sieve) hasLock(pid int) bool {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join("/proc", strconv.Itoa(pid), "fd", strconv.Itoa(lockFD)), &st)
	return err == nil && st.Dev == s.lock.Dev && st.Ino == s.lock.Ino && st.Ino != 0
}
