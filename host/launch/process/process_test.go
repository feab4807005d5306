package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/launch/launchtest/report"
	"github.com/dals-host/dals-host/host/worker"
)

func open(cfg launchtest.Config) (launch.Launcher, error) {
	return New(context.Background(), Config(cfg))
}

func launcherOf(b *launchtest.Bench) *Launcher { return b.Launcher.(*Launcher) }

func TestMain(m *testing.M) { os.Exit(launchtest.Main(m, open)) }

func TestContract(t *testing.T) { launchtest.Run(t, open) }

// TestUnwrittenRun: the host died after the fork and before it wrote that down.
func TestUnwrittenRun(t *testing.T) {
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	status, _ := b.Status(g.Spec.Serial)
	old := b.Launcher
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (record{Spec: g.Spec}).save(old.(*Launcher).dir); err != nil {
		t.Fatal(err)
	}
	b.Reopen()
	if again, ok := b.Status(g.Spec.Serial); !ok || again != status {
		t.Fatalf("listed as %+v, %v; want %+v", again, ok, status)
	}
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); !errors.Is(err, worker.ErrConflict) {
		t.Fatalf("started a twin: %v", err)
	}
	b.Stop(g.Spec.Serial, 0)
	g.ExpectProcesses(0)
}

// TestHeldLock: a process that shows no mark has the lock; nobody may start.
func TestHeldLock(t *testing.T) {
	b := launchtest.NewBench(t, open)
	spec := b.Spec()
	if err := b.Launcher.Create(b.Context(), spec); err != nil {
		t.Fatal(err)
	}
	lock, err := takeLock(t.Context(), b.Launcher.(*Launcher).lockPath(spec.Serial))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Launcher.Start(b.Context(), spec.Serial); !errors.Is(err, worker.ErrConflict) {
		t.Fatalf("started beside a held lock: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Launcher.Start(b.Context(), spec.Serial); err != nil {
		t.Fatal(err)
	}
}

// TestSameUID: what runs under a worker's own uid is the worker's, whatever mark
// it bears.
func TestSameUID(t *testing.T) {
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	other := sleepAs(t, launchtest.UID(), launcherOf(b).mark(g.Spec.Serial))
	strays := []*exec.Cmd{sleepAs(t, g.Spec.UID), sleepAs(t, g.Spec.UID, markVar+"=another host/DMN-XX-1-00000000-00000")}
	b.Stop(g.Spec.Serial, time.Second)
	for _, stray := range strays {
		if err := stray.Wait(); err == nil || stray.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Errorf("a stray process under the worker's uid: %v", err)
		}
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process of another uid with the worker's mark: %v", err)
	}
}

func sleepAs(t *testing.T, uid int, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.Env, cmd.Dir = append([]string{"LANG=C"}, env...), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(uid)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestCorruptRecord(t *testing.T) {
	b := launchtest.NewFolder(t, open)
	dir := filepath.Join(b.Config.DataDir, "process")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"spec":{"Serial":"DMN-XX-1-00000000-00001"}}`} {
		if err := os.WriteFile(filepath.Join(dir, "DMN-XX-1-00000000-00000.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(b.Config); !errors.Is(err, worker.ErrCorrupt) || worker.HintOf(err) == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestStartFails: a binary that cannot be executed leaves the worker as it was.
func TestStartFails(t *testing.T) {
	b := launchtest.NewBench(t, open)
	spec := b.Spec()
	spec.Image.Path = filepath.Join(spec.Dir, "identity.json")
	if err := b.Launcher.Create(b.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := b.Launcher.Start(b.Context(), spec.Serial)
		if err == nil || errors.Is(err, worker.ErrConflict) {
			t.Fatalf("executed a text: %v", err)
		}
	}
	if b.Running(spec.Serial) {
		t.Error("listed as running")
	}
}

// TestUmask: starting workers does not touch the host's own umask.
func TestUmask(t *testing.T) {
	b := launchtest.NewBench(t, open)
	before := unix.Umask(0o022)
	unix.Umask(before)
	if got := b.Guest().Report().Umask; got != "0077" {
		t.Errorf("the worker's umask is %s", got)
	}
	if after := unix.Umask(before); after != before {
		t.Errorf("the host's umask went from %o to %o", before, after)
	}
}

// TestWithoutRoot runs the contract again under a plain uid.
func TestWithoutRoot(t *testing.T) {
	uid := launchtest.UID()
	tmp, err := os.MkdirTemp("/tmp", "without-root")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	binary, err := os.ReadFile(os.Getenv(launchtest.EnvBinary))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(tmp, "testworker")
	if err := os.WriteFile(copied, binary, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(tmp, uid, uid); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestContract$", "-test.v")
	cmd.Env = []string{"TMPDIR=" + tmp, launchtest.EnvBinary + "=" + copied}
	cmd.Dir = tmp
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(uid)}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestContract ")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestNamespaces: the contract's disguise in namespaces is refused by no cage here.
func TestNamespaces(t *testing.T) {
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	var f report.Fork
	g.Get("disguise", &f)
	if f.Started != 2 {
		t.Fatalf("started %d: %s", f.Started, f.Error)
	}
	b.Stop(g.Spec.Serial, time.Second)
	g.ExpectProcesses(0)
}

// TestDescriptors: of what a worker is born with it can write its log only.
func TestDescriptors(t *testing.T) {
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	status, _ := b.Status(g.Spec.Serial)
	for fd, want := range []int{unix.O_RDONLY, unix.O_WRONLY | unix.O_APPEND, unix.O_WRONLY | unix.O_APPEND, unix.O_RDONLY, unix.O_RDONLY, unix.O_RDONLY} {
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", status.PID, fd))
		if err != nil {
			t.Fatal(err)
		}
		var position, flags int
		if _, err := fmt.Sscanf(string(info), "pos: %d\nflags: %o", &position, &flags); err != nil {
			t.Fatal(err)
		}
		if got := flags & (unix.O_ACCMODE | unix.O_APPEND); got != want {
			t.Errorf("descriptor %d is open with %#o, want %#o", fd, got, want)
		}
	}
}
