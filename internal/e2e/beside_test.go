package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dals-host/dals-host/sdk/client"
)

// ctr runs containerd's own client.
func ctr(address, namespace string, args ...string) error {
	text, err := exec.Command("ctr", append([]string{"--address", address, "--namespace", namespace}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return nil
}

// rootfs is a folder to run a container of the test's own from: /program sleep.
func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"proc", "sys", "dev", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(filepath.Join(bin, "dals-worker-rogue"))
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "program"), program, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestUnknownContainer: containers in the host's place that the registry does not
// know, with its mark or without, are told of and run on, whatever is collected,
// until all is ended.
func TestUnknownContainer(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	nora := h.forge("nora", "template")
	socket := filepath.Join(h.dir, "containerd", "containerd.sock")
	strays := map[string]string{"DMN-ZZ-1-00000000-00000": "dals.host=" + h.id, "somebody-elses": "mark=none"}
	for stray, label := range strays {
		if err := ctr(socket, "dals-"+h.id, "run", "--detach", "--rootfs", "--label", label, rootfs(t), stray, "/program", "sleep"); err != nil {
			t.Fatal(err)
		}
	}
	run := func() {
		t.Helper()
		for stray := range strays {
			if pids := h.pids(stray); len(pids) != 1 {
				t.Fatalf("processes %v of the unknown container %s, want one\n%s", pids, stray, h.log)
			}
		}
	}
	h.kill()
	h.start()
	run()
	for stray := range strays {
		h.eventually("doctor tells of "+stray, func() error {
			if stdout, _, _ := h.run("doctor"); !strings.Contains(stdout, stray+" (running: true)") {
				return errors.New(stdout)
			}
			return nil
		})
		if !strings.Contains(h.log.String(), "does not know this worker; left alone: serial="+stray) {
			t.Errorf("the log does not tell of %s", stray)
		}
	}
	if stdout, stderr, code := h.run("gc"); code != 0 || strings.Contains(stdout, "container") {
		t.Errorf("gc: exit %d: %s%s", code, stdout, stderr)
	}
	run()
	if w := h.worker("nora"); w.State != "live" || w.Restarts != 0 || w.WorkerSerial != nora.WorkerSerial {
		t.Errorf("worker %+v", w)
	}
	h.down()
	if err := os.Remove(filepath.Join("/run/containerd/runc", "dals-"+h.id)); err != nil { // ctr's, not the host's
		t.Error(err)
	}
}

// TestBesideAnotherContainerd: neither knows of the other, whichever comes, works
// or goes.
func TestBesideAnotherContainerd(t *testing.T) {
	t.Parallel()
	o := newOperators(t)
	h := newHost(t, "containerd")
	o.run()
	h.forge("nora", "template")
	h.mustSend("nora", "template.echo", map[string]string{"message": "beside it"})
	if theirs := h.having("--config", o.config); !slices.Equal(theirs, []int{o.cmd.Process.Pid}) || h.containerd() == o.cmd.Process.Pid {
		t.Errorf("the operator's containerds are %v, want %d alone", theirs, o.cmd.Process.Pid)
	}
	if _, err := h.client.Workers(t.Context(), client.WorkerFilter{}); err != nil {
		t.Error(err)
	}
	h.down()
	o.wantRunning()
}

// TestContainerdCannotStart: it is said by the host and by doctor, workers run on,
// and once it can start again all is well without anybody's help.
func TestContainerdCannotStart(t *testing.T) {
	t.Parallel()
	s := newScene(t, newHost(t, "containerd"))
	root := filepath.Join(s.dir, "containerd", "root")
	pid := s.containerd()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // so that it is not started before its folder is away
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(root, root+".away"), os.WriteFile(root, []byte("no folder"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.killAll([]int{pid})
	s.eventually("doctor tells", func() error {
		if stdout, _, _ := s.run("doctor"); !strings.Contains(stdout, "launcher: workers run on") {
			return errors.New(stdout)
		}
		return nil
	})
	s.mustSend("nora", "rogue.count", map[string]int{"n": 0})
	s.eventually("the log tells", func() error {
		if n := strings.Count(s.log.String(), "containerd does not start"); n == 0 || n > 50 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	if err := errors.Join(os.Remove(root), os.Rename(root+".away", root)); err != nil {
		t.Fatal(err)
	}
	s.eventually("containerd is back", func() error {
		if stdout, _, _ := s.run("doctor"); strings.Contains(stdout, "launcher: workers run on") {
			return errors.New(stdout)
		}
		return nil
	})
	s.outlived(0)
}

// TestNotRoot: what a host does that is not root, and how it says what it does not.
func TestNotRoot(t *testing.T) {
	t.Parallel()
	const nobody = 65534
	h := &host{t: t, launcher: "auto", uid: nobody}
	h.setup()
	if status, err := h.client.Status(t.Context()); err != nil || status.Launcher != "process" || !strings.Contains(status.LauncherReason, "can read each other's keys") {
		t.Fatalf("status %+v, %v", status, err)
	}
	h.launcher = "process"
	s := newScene(t, h)
	h.kill()
	h.start()
	s.outlived(0)
	h.signal(s.live.WorkerSerial, syscall.SIGKILL)
	s.outlived(1)
	if text, _, _ := h.run("doctor"); !strings.Contains(text, "not root: workers are plain processes without isolation") {
		t.Errorf("doctor says:\n%s", text)
	}
	// One user for all: nothing keeps one worker from another's key.
	for _, serial := range []string{s.live.WorkerSerial, s.stopped.WorkerSerial} {
		info, err := os.Stat(filepath.Join(h.dir, "workers", "instances", serial, "certs", "worker.key"))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != nobody {
			t.Errorf("the key of %s belongs to uid %d: then the docs are wrong", serial, uid)
		}
	}
	dir, err := os.MkdirTemp("", "dals-e2e-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	other := &host{t: t, uid: nobody, launcher: "containerd", dir: dir}
	for _, flags := range [][]string{nil, {"--containerd", "private"}, {"--containerd", "/run/containerd/containerd.sock"}} {
		other.wantNoStart("containers need root", "run the host as root, or with --launcher process", flags...)
	}
}
