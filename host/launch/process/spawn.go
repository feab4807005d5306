package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// Descriptors that a worker is born with, besides the standard three. Folder
// and binary are reached by descriptor, because their paths lie below folders
// that the worker's uid cannot enter.
const (
	dirFD    = 3 // its folder
	lockFD   = 4 // its lock file, locked
	binaryFD = 5 // its binary, from which it was executed
	mountFD  = 6 // and from here on: the folders that it was granted
)

// spawn starts the worker's binary. The caller owns the result.
func spawn(spec launch.Spec, lock *os.File, mark string) (*pidfd.Process, error) {
	files, err := openFiles(spec, lock)
	if err != nil {
		return nil, err
	}
	defer closeFiles(files, lock)
	fd := -1
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   environment(spec, mark),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &fd, Credential: credential(spec.UID)},
	}
	pid, err := restricted(func() (int, error) {
		p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", binaryFD), []string{argument(spec)}, attr)
		if err != nil {
			return 0, err
		}
		pid := p.Pid // Release forgets it
		return pid, p.Release()
	})
	if err != nil {
		return nil, fmt.Errorf("execute %s: %w", spec.Image.Path, err)
	}
	proc, err := pidfd.Hold(fd, pid)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // our child, not waited for: the number is still its own
		_, _ = unix.Wait4(pid, nil, 0, nil)
		return nil, err
	}
	return proc, nil
}

// environment says where the worker finds what it is shown.
func environment(spec launch.Spec, mark string) []string {
	env := []string{mark, fmt.Sprintf("%s=/proc/self/fd/%d", launch.EnvDir, dirFD)}
	if len(spec.Mounts) == 0 {
		return env
	}
	at := make([]string, len(spec.Mounts))
	for i, m := range spec.Mounts {
		at[i] = fmt.Sprintf("%s=/proc/self/fd/%d", m.Place, mountFD+i)
	}
	return append(env, launch.EnvMounts+"="+strings.Join(at, ":"))
}

// openFiles opens what the worker is born with, in the order of descriptors.
func openFiles(spec launch.Spec, lock *os.File) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files, lock)
		}
	}()
	add := func(what, path string, flags int) {
		if err != nil {
			return
		}
		f, openErr := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
		if openErr != nil {
			err = fmt.Errorf("open %s: %w", what, openErr)
			return
		}
		files = append(files, f)
	}
	logPath := filepath.Join(spec.Dir, launch.LogsDir, launch.LogFile)
	add("standard input", os.DevNull, os.O_RDONLY)
	add("log", logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE)
	add("log", logPath, os.O_WRONLY|os.O_APPEND)
	add("folder", spec.Dir, os.O_RDONLY|unix.O_DIRECTORY)
	files = append(files, lock)
	add("binary", spec.Image.Path, os.O_RDONLY)
	for _, m := range spec.Mounts {
		if err != nil {
			return files, err
		}
		var folder *os.File
		if folder, err = m.Open(); err == nil {
			files = append(files, folder)
		}
	}
	return files, err
}

// closeFiles closes the host's copies, but for the lock, which is the caller's.
func closeFiles(files []*os.File, lock *os.File) {
	for _, f := range files {
		if f != lock {
			_ = f.Close()
		}
	}
}

// credential is nil where the worker keeps the host's own uid.
func credential(uid int) *syscall.Credential {
	if uid == os.Geteuid() {
		return nil
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
}

// argument is what the process list shows of the worker.
func argument(spec launch.Spec) string {
	return "dals-worker-" + spec.Image.Type + " " + string(spec.Serial)
}

// restricted runs start on a thread that has no new privileges, no ambient
// capabilities and umask 077, which the child inherits. The thread is spoilt
// for all else: its goroutine ends without giving it back, and it dies.
func restricted(start func() (int, error)) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = restrictThread(); err == nil {
			pid, err = start()
		}
	}()
	<-done
	return pid, err
}

func restrictThread() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the umask is this thread's from here on
		return fmt.Errorf("unshare umask: %w", err)
	}
	unix.Umask(0o077)
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	return nil
}

// takeLock locks the file at path for a new run. Whoever holds it already may
// be a child of this host on its way to exec, which lets go at once, so it
// tries for a moment.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	defer f.Close()
	// Away from lockFD: the forks of other workers must not show it there.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 2*lockFD)
	if err != nil {
		return nil, fmt.Errorf("duplicate lock: %w", err)
	}
	lock := os.NewFile(uintptr(fd), path)
	moment, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err = poll(moment, func() (bool, error) { return tryLock(lock) })
	if ctx.Err() == nil && moment.Err() != nil {
		err = fmt.Errorf("an earlier run holds its lock: %w", worker.ErrConflict)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// lockFree says that no process has the lock at path; so does a missing file.
func lockFree(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open lock: %w", err)
	}
	defer f.Close()
	return tryLock(f)
}

func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return true, nil
}
