// Package pidfd holds Linux processes by descriptor, so that no signal and no
// wait can ever meet another process that got the same number.
//
// An Identity names a process for all time: number, start time and boot. It may
// be written down; Open turns it back into the living process or says that it
// is gone. A Process waits in the runtime's poller and costs no thread.
package pidfd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process named by an Identity has ended.
var ErrGone = errors.New("process has ended")

// Identity names one process for all time.
type Identity struct {
	Boot  string `json:"boot"`  // kernel.random.boot_id
	PID   int    `json:"pid"`   // as this process sees it
	Start uint64 `json:"start"` // clock ticks after boot
}

// Process is a process held by descriptor. Its methods are safe for concurrent
// use, but only one goroutine may Wait.
type Process struct {
	id    Identity
	child bool // of this process: its end can be told
	file  *os.File
	conn  syscall.RawConn
}

// Identify reads the identity of the process that has number pid now.
func Identify(pid int) (Identity, error) {
	boot, err := BootID()
	if err != nil {
		return Identity{}, err
	}
	st, err := ReadStat(pid)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Boot: boot, PID: pid, Start: st.Start}, nil
}

// BootID names this run of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Open takes hold of the process named by id. It is ErrGone if that has ended;
// a child of ours that ended but was never waited for can still be opened.
func Open(id Identity) (*Process, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	// Only now, with the number pinned by the descriptor, is its start time proof.
	return hold(fd, id.PID, func(now Identity, st Stat) error {
		if now != id || (st.Ended() && st.Parent != os.Getpid()) {
			return ErrGone
		}
		return nil
	})
}

// Hold takes over the descriptor fd of the process with number pid, which must
// be a child of this process that nobody has waited for.
func Hold(fd, pid int) (*Process, error) {
	return hold(fd, pid, func(Identity, Stat) error { return nil })
}

func hold(fd, pid int, check func(Identity, Stat) error) (_ *Process, err error) {
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	st, err := ReadStat(pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	id := Identity{Boot: boot, PID: pid, Start: st.Start}
	if err := check(id, st); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the runtime would not poll it
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	return &Process{id: id, child: st.Parent == os.Getpid(), file: file, conn: conn}, nil
}

// Identity names the process.
func (p *Process) Identity() Identity { return p.id }

// Wait blocks until the process has ended. A child of ours is reaped, and known
// is true: status tells how it ended. After Close the error is os.ErrClosed.
func (p *Process) Wait() (status unix.WaitStatus, known bool, err error) {
	var pollErr error
	err = p.conn.Read(func(fd uintptr) bool {
		var ready bool
		ready, pollErr = ended(int(fd))
		return ready || pollErr != nil
	})
	if err != nil { // without deadlines only Close ends it; the runtime's own error is not exported
		return 0, false, fmt.Errorf("wait for process %d: %w", p.id.PID, os.ErrClosed)
	}
	if pollErr != nil {
		return 0, false, fmt.Errorf("wait for process %d: %w", p.id.PID, pollErr)
	}
	if !p.child {
		return 0, false, nil
	}
	for {
		pid, err := unix.Wait4(p.id.PID, &status, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return status, err == nil && pid == p.id.PID, nil
		}
	}
}

// Ended says whether the process has ended.
func (p *Process) Ended() bool {
	gone := true
	err := p.conn.Control(func(fd uintptr) {
		if now, err := ended(int(fd)); err == nil {
			gone = now
		}
	})
	return err == nil && gone
}

func ended(fd int) (bool, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// Signal sends sig. A process that has ended takes it in silence.
func (p *Process) Signal(sig unix.Signal) error {
	var sendErr error
	err := p.conn.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(sendErr, unix.ESRCH) {
		sendErr = nil
	}
	if err = errors.Join(err, sendErr); err != nil {
		return fmt.Errorf("signal process %d: %w", p.id.PID, err)
	}
	return nil
}

// Close lets go of the process without touching it; a Wait under way returns.
func (p *Process) Close() error { return p.file.Close() }
