package pidfd

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(envHeadless) != "" {
		headless()
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, script string) *Process {
	t.Helper()
	fd := -1
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Hold(fd, cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Signal(unix.SIGKILL)
		_ = p.Close()
	})
	return p
}

func TestWaitTellsHowAChildEnded(t *testing.T) {
	t.Parallel()
	p := start(t, "exit 7")
	status, known, err := p.Wait()
	if err != nil || !known || status.ExitStatus() != 7 {
		t.Fatalf("status %v, known %v, %v", status.ExitStatus(), known, err)
	}
	if !p.Ended() {
		t.Fatal("an ended process is said to run")
	}
	if _, err := Open(p.Identity()); !errors.Is(err, ErrGone) {
		t.Fatalf("opened an ended process: %v", err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatalf("signal an ended process: %v", err)
	}
}

func TestSignalAndOpen(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	again, err := Open(p.Identity())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	other := p.Identity()
	other.Start++
	if _, err := Open(other); !errors.Is(err, ErrGone) {
		t.Fatalf("took one process for another: %v", err)
	}
	other = p.Identity()
	other.Boot = "earlier"
	if _, err := Open(other); !errors.Is(err, ErrGone) {
		t.Fatalf("took a process of another boot: %v", err)
	}
	if again.Ended() {
		t.Fatal("a running process is said to have ended")
	}
	if err := again.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, known, err := p.Wait(); err != nil || !known || status.Signal() != unix.SIGKILL {
		t.Fatalf("status %v, known %v, %v", status, known, err)
	}
	if _, known, err := again.Wait(); err != nil || known {
		t.Fatalf("reaped twice: known %v, %v", known, err)
	}
}

func TestCloseEndsWait(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	again, err := Open(p.Identity())
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() { _, _, err := again.Wait(); waited <- err }()
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, os.ErrClosed) {
		t.Fatalf("wait on a closed process: %v", err)
	}
}

func TestEachSeesOurselves(t *testing.T) {
	t.Parallel()
	seen := false
	if err := Each(func(pid int, _ Stat) { seen = seen || pid == os.Getpid() }); err != nil || !seen {
		t.Fatalf("seen %v, %v", seen, err)
	}
	if args := Cmdline(os.Getpid()); len(args) == 0 || args[0] != os.Args[0] {
		t.Fatalf("command line %q", args)
	}
	if uid, ok := UID(os.Getpid()); !ok || uid != os.Getuid() {
		t.Fatalf("uid %d, %v", uid, ok)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 33 1 1"))
	f.Add([]byte("2 (a) b) (c) Z 1 2 3 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551615"))
	f.Add([]byte("3 (x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if st, err := parseStat(data); err == nil && st.State == 0 {
			t.Fatalf("a stat without a state: %q", data)
		}
	})
}

// TestThreadsOutliveTheFirst: a process whose first thread has ended looks like a
// zombie while its others run.
func TestThreadsOutliveTheFirst(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{envHeadless + "=1"}
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Hold(fd, cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	pid := p.Identity().PID
	for deadline := time.Now().Add(time.Minute); ; {
		st, err := ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		if st.State == 'Z' {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its first thread does not end: %+v", st)
		}
	}
	seen := false
	if err := Each(func(other int, _ Stat) { seen = seen || other == pid }); err != nil || !seen {
		t.Errorf("its other threads are not seen: %v", err)
	}
	if p.Ended() {
		t.Error("it is said to have ended")
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, known, err := p.Wait(); err != nil || !known {
		t.Fatalf("known %v, %v", known, err)
	}
}

const envHeadless = "DALS_PIDFD_HEADLESS"

// headless ends the process's first thread; the others run on.
func headless() {
	for {
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
			}
			time.Sleep(time.Hour)
		}()
		time.Sleep(10 * time.Millisecond)
	}
}
