package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/workerlog"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/stage"
)

// While a host lives it bounds the logs of its workers; when it has died its log
// guard does, a process of its own that waits for that. No worker's output goes
// through either: what nobody guards is only not bounded.

func logsOf(store *stage.Store, log hclog.Logger) *workerlog.Logs {
	return workerlog.New(store, path.Join(launch.LogsDir, launch.LogFile), log)
}

// GuardLogs is the log guard of a data folder. It waits until host ends, which it
// does with the host that holds its other end, and then bounds the workers' logs
// for as long as there are workers: the next host ends it.
func GuardLogs(ctx context.Context, dataDir string, host io.Reader, log hclog.Logger) error {
	folder, err := os.Open(dataDir)
	if err != nil {
		return fmt.Errorf("guard logs: %w", err)
	}
	defer folder.Close()
	// The lock tells hosts of this process. It is one that the folder need not be
	// writable for.
	if err := unix.FcntlFlock(folder.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		return fmt.Errorf("guard logs: lock: %w", err)
	}
	store, err := stage.Open(stage.Config{Dir: pathsOf(dataDir).workers})
	if err != nil {
		return err
	}
	defer store.Close()
	if _, err := io.Copy(io.Discard, host); err != nil {
		return fmt.Errorf("guard logs: wait for the end of the host: %w", err)
	}
	if lives, err := hostLives(ctx, pathsOf(dataDir).lock); err != nil || lives {
		return err
	}
	return logsOf(store, log).RunWhileWorkers(ctx)
}

// hostLives says whether a host has the data folder: one that has come since may
// have looked for guards too early to see this one. A host that is dying may have
// it for a moment yet.
func hostLives(ctx context.Context, lock string) (bool, error) {
	l := flock.New(lock, flock.SetFlag(os.O_RDONLY))
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	free, err := l.TryRLockContext(ctx, 10*time.Millisecond)
	if errors.Is(err, context.DeadlineExceeded) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("guard logs: look for another host: %w", err)
	}
	return !free, l.Unlock()
}

// endGuards ends the log guards of this data folder.
func (h *Host) endGuards() error {
	folder, err := os.Open(h.paths.data)
	if err != nil {
		return fmt.Errorf("end log guard: %w", err)
	}
	defer folder.Close()
	holder := func() (int, error) {
		l := unix.Flock_t{Type: unix.F_WRLCK}
		err := unix.FcntlFlock(folder.Fd(), unix.F_GETLK, &l)
		if err != nil || l.Type == unix.F_UNLCK {
			return 0, err
		}
		return int(l.Pid), nil
	}
	for {
		pid, err := holder()
		if err != nil || pid <= 0 {
			return err
		}
		if err := endHolder(pid, holder); err != nil {
			return fmt.Errorf("end log guard %d: %w", pid, err)
		}
	}
}

// endHolder kills process pid if, once held, it still is the holder.
func endHolder(pid int, holder func() (int, error)) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if now, err := holder(); err != nil || now != pid {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// keepGuard keeps a log guard running until ctx ends. It stays when the host
// leaves workers behind.
func (h *Host) keepGuard(ctx context.Context) error {
	if len(h.LogGuard) == 0 {
		return nil
	}
	guard := h.guard // that openStage has started
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		var err error
		if guard == nil {
			guard, err = h.startGuard()
		}
		if err != nil {
			h.Logger.Warn("no log guard: while no host lives, logs are not bounded", "error", err)
		} else if ended := h.awaitGuard(ctx, guard); !ended {
			return nil
		}
		guard = nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// replaceGuard ends the guard that an earlier host has left, and starts one of this
// host's: logs are bounded whether this host comes up or not. Where none can be
// started, keepGuard tries again.
func (h *Host) replaceGuard() error {
	if err := h.endGuards(); err != nil || len(h.LogGuard) == 0 {
		return err
	}
	guard, err := h.startGuard()
	if err != nil {
		h.Logger.Warn("no log guard yet: while no host lives, logs are not bounded", "error", err)
	}
	h.guard = guard
	return nil
}

// startGuard starts a log guard, in a session of its own. It learns of the host's
// end by the pipe of which the host, and nobody else, has the other end.
func (h *Host) startGuard() (*exec.Cmd, error) {
	if err := h.endGuards(); err != nil {
		return nil, err
	}
	guard := exec.Command(h.LogGuard[0], h.LogGuard[1:]...)
	guard.Dir, guard.Env = "/", []string{}
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := guard.StdinPipe()
	if err != nil {
		return nil, err
	}
	h.guarded = pipe // until the process ends, as does the folder's lock
	if err := guard.Start(); err != nil {
		return nil, err
	}
	return guard, nil
}

// awaitGuard waits for the guard's end and says whether it has ended. When ctx
// ends first the guard is ended only if no workers are left to it.
func (h *Host) awaitGuard(ctx context.Context, guard *exec.Cmd) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if state, err := guard.Process.Wait(); err != nil || ctx.Err() == nil {
			h.Logger.Warn("log guard has ended", "state", state, "error", err)
		}
	}()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
	}
	if h.leavesWorkers(context.WithoutCancel(ctx)) {
		return false
	}
	if err := guard.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.Logger.Warn("log guard stays", "error", err)
		return false
	}
	<-ended
	return false
}

// leavesWorkers says whether workers run on after this host. When nobody knows,
// they do.
func (h *Host) leavesWorkers(ctx context.Context) bool {
	if h.goingDown.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := h.launcher.List(ctx)
	for _, s := range list {
		if s.Running {
			return true
		}
	}
	return err != nil
}
