package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limits are what a plugin may use while it is probed. Data bounds memory: unlike
// the address space it does not count what Go only reserves.
var limits = []struct {
	resource int
	max      uint64
	ownUID   bool // counted per uid: only where nobody shares it
}{
	{unix.RLIMIT_CORE, 0, false},
	{unix.RLIMIT_CPU, 10, false},
	{unix.RLIMIT_DATA, 1 << 30, false},
	{unix.RLIMIT_FSIZE, 1 << 20, false},
	{unix.RLIMIT_NOFILE, 256, false},
	{unix.RLIMIT_NPROC, 256, true},
}

// sweepTime is how long to go on killing processes that go on forking.
const sweepTime = time.Second

// namespaces keep a plugin from the network and from other processes; and when
// the first process of a PID namespace ends, the kernel ends all others before
// that can be waited for.
const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC

// onThreadOfItsOwn runs f on a thread that ends with it.
func onThreadOfItsOwn(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	// The main thread does not end before the host: keep it away until f is done.
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThreadOfItsOwn(f)
	}()
	<-done
}

// onAnotherThread runs f where Landlock does not hold.
func onAnotherThread(f func() error) error {
	done := make(chan error)
	go func() { done <- f() }()
	return <-done
}

// live starts the process, waits for its end, and ends what it leaves. It wants
// a thread of its own: the thread takes no_new_privs, which its children inherit
// and which cannot be taken back; it traces the process; and when it ends, as it
// does when the host is killed, the process is killed.
func (p *process) live(started chan<- error) {
	defer close(p.gone)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		started <- fmt.Errorf("set no_new_privs: %w", err)
		return
	}
	if version, err := landlocked(p.binary, p.folder); err != nil {
		p.log.Debug("plugin is probed without Landlock", "error", err)
	} else {
		p.log.Debug("plugin is probed under Landlock", "version", version)
	}
	if err := socketless(); err != nil {
		p.log.Warn("plugin is probed with sockets: this machine does not allow to refuse them", "error", err)
	}
	caged := true
	cmd, stdout, stderr, err := p.launch(caged)
	if isDenied(err) {
		caged = false
		p.log.Warn("plugin is probed without namespaces: this machine does not allow them", "error", err)
		cmd, stdout, stderr, err = p.launch(caged)
	}
	if err != nil {
		started <- err
		return
	}
	defer stdout.Close()
	defer stderr.Close()
	p.pid = cmd.Process.Pid
	p.log.Debug("plugin is executed", "binary", p.binary.Name(), "pid", p.pid)
	pumps := p.listen(stdout, stderr)
	started <- nil
	p.await()
	// Its pid is still taken, so this is its group and no other.
	_ = unix.Kill(-p.pid, unix.SIGKILL)
	_ = cmd.Wait() // its state says more than the error
	p.state = cmd.ProcessState
	if !caged && os.Geteuid() == 0 {
		p.sweep()
	}
	close(p.exited)
	pumps()
}

// sweep ends what has left the plugin's group: its uid is nobody else's.
func (p *process) sweep() {
	deadline := time.After(sweepTime)
	for killAll(p.uid) > 0 {
		select {
		case <-deadline:
			p.log.Error("probe left processes behind", "uid", p.uid)
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// killAll kills the processes of a uid and counts them.
func killAll(uid int) (alive int) {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, dir := range processes {
		pid, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it has ended
		}
		// The folder is this very process for as long as it is open, whoever may
		// get its number.
		status, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/status", pid))
		if err == nil && isOf(uid, status) && unix.PidfdSendSignal(pid, unix.SIGKILL, nil, 0) == nil {
			alive++
		}
		unix.Close(pid)
	}
	return alive
}

// isOf reads a status file of proc(5): a process that is no zombie, of a uid.
func isOf(uid int, status []byte) bool {
	return bytes.Contains(status, fmt.Appendf(nil, "\nUid:\t%d\t", uid)) && !bytes.Contains(status, []byte("\nState:\tZ"))
}

// isDenied says that the cage is what failed.
func isDenied(err error) bool {
	for _, denied := range []error{syscall.EPERM, syscall.ENOSPC, syscall.EINVAL, syscall.ENOSYS, syscall.EUSERS} {
		if errors.Is(err, denied) {
			return true
		}
	}
	return false
}

// launch executes the plugin; caged, not before its limits are set.
func (p *process) launch(caged bool) (cmd *exec.Cmd, stdout, stderr *os.File, err error) {
	stdout, outside, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer outside.Close()
	stderr, errside, err := os.Pipe()
	if err != nil {
		stdout.Close()
		return nil, nil, nil, err
	}
	defer errside.Close()
	cmd = p.command(caged)
	cmd.Stdout, cmd.Stderr = outside, errside
	if err := cmd.Start(); err != nil {
		stdout.Close()
		stderr.Close()
		return nil, nil, nil, err
	}
	p.confine(cmd.Process.Pid, caged)
	return cmd, stdout, stderr, nil
}

func (p *process) command(caged bool) *exec.Cmd {
	cmd := exec.CommandContext(p.ctx, binaryInside)
	cmd.Args = []string{p.Name()}
	cmd.Dir = "/"
	cmd.Env = p.env
	cmd.ExtraFiles = []*os.File{p.folder, p.binary}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Ptrace: caged}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(p.uid), Gid: uint32(p.uid)}
		if caged {
			cmd.SysProcAttr.Cloneflags = namespaces
		}
	}
	return cmd
}

// confine sets the limits of a process and lets it run. A caged one is traced,
// so it has stopped before its first instruction.
func (p *process) confine(pid int, caged bool) {
	if caged {
		_ = waitFor(pid, unix.WSTOPPED|unix.WEXITED)
	}
	if err := p.limit(pid, caged); err != nil {
		p.log.Warn("plugin is probed without limits", "error", err)
	}
	if caged {
		_ = unix.PtraceDetach(pid) // it fails only for one that has ended
	}
}

func (p *process) limit(pid int, caged bool) error {
	uid, gid := os.Getuid(), os.Getgid()
	if caged && os.Geteuid() == 0 {
		// Limits of another uid's process take CAP_SYS_RESOURCE, which a container's
		// root has not, or the same real uid. Only this thread has it, and no process
		// of that uid runs yet to make use of it.
		if err := becomeReal(p.uid, p.uid); err != nil {
			return err
		}
		defer func() { _ = becomeReal(uid, gid) }()
	}
	// Should memory run out, it is the first to go.
	err := onAnotherThread(func() error {
		return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0)
	})
	for _, l := range limits {
		if l.ownUID && os.Geteuid() != 0 {
			continue
		}
		if e := unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: l.max, Max: l.max}, nil); e != nil {
			err = errors.Join(err, fmt.Errorf("set limit %d: %w", l.resource, e))
		}
	}
	return err
}

// becomeReal changes the calling thread's real ids; the effective ones stay. The
// system calls are made by hand because those of the libraries change every
// thread of the process.
func becomeReal(uid, gid int) error {
	const keep = ^uintptr(0)
	if _, _, err := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), keep, keep); err != 0 {
		return fmt.Errorf("change real gid: %w", err)
	}
	if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), keep, keep); err != 0 {
		return fmt.Errorf("change real uid: %w", err)
	}
	return nil
}

// await waits for the end of the process, without reaping it.
func (p *process) await() {
	_ = waitFor(p.pid, unix.WEXITED)
	p.byItself = p.ctx.Err() == nil
}

// waitFor waits for a change of state of the process and leaves it to be waited
// for again.
func waitFor(pid, states int) error {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, states|unix.WNOWAIT, nil); err != unix.EINTR {
			return err
		}
	}
}
