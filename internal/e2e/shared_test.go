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
)

// operators is a containerd that an operator runs, with all that it serves by
// default.
type operators struct {
	t       *testing.T
	config  string
	address string
	cmd     *exec.Cmd
}

func newOperators(t *testing.T) *operators {
	t.Helper()
	dir := t.TempDir()
	o := &operators{t: t, config: filepath.Join(dir, "config.toml"), address: filepath.Join(dir, "c.sock")}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\n[grpc]\n  address = %q\n", dir+"/root", dir+"/state", o.address)
	if err := os.WriteFile(o.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	o.start()
	t.Cleanup(o.stop)
	return o
}

func (o *operators) start() {
	o.t.Helper()
	o.cmd = exec.Command("containerd", "--config", o.config)
	if err := o.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	(&host{t: o.t}).eventually("the operator's containerd answers", func() error { return ctr(o.address, "default", "version") })
}

func (o *operators) stop() {
	_ = o.cmd.Process.Signal(syscall.SIGTERM)
	_ = o.cmd.Wait()
}

// name is that of its container; runc keeps those of all containerds in one place.
func (o *operators) name() string { return "theirs-" + o.t.Name() }

// run has it run a container until the test ends.
func (o *operators) run() {
	o.t.Helper()
	name := o.name()
	if err := ctr(o.address, "default", "run", "--detach", "--rootfs", rootfs(o.t), name, "/program", "sleep"); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		if err := errors.Join(ctr(o.address, "default", "task", "kill", "-s", "KILL", name), ctr(o.address, "default", "task", "delete", "-f", name)); err != nil {
			o.t.Error(err)
		}
	})
}

func (o *operators) wantRunning() {
	o.t.Helper()
	text, err := exec.Command("ctr", "--address", o.address, "tasks", "list").CombinedOutput()
	if err != nil || !strings.Contains(string(text), o.name()) || !strings.Contains(string(text), "RUNNING") {
		o.t.Errorf("the operator's container %s: %v: %s", o.name(), err, text)
	}
}

// list is what it has of a kind, by name.
func (o *operators) list(namespace, kind string) []string {
	o.t.Helper()
	text, err := exec.Command("ctr", "--address", o.address, "--namespace", namespace, kind, "list", "--quiet").CombinedOutput()
	if err != nil {
		o.t.Fatalf("ctr %s list: %v: %s", kind, err, text)
	}
	return strings.Fields(string(text))
}

// TestOperatorsContainerd: a host whose workers run under a containerd that
// somebody else runs does all that it does with one of its own, leaves what is not
// its own alone, and leaves nothing behind.
func TestOperatorsContainerd(t *testing.T) {
	t.Parallel()
	o := newOperators(t)
	o.run()
	h := &host{t: t, launcher: "containerd", flags: []string{"--containerd", o.address}}
	h.setup()
	s := newScene(t, h)
	before := h.pids(s.live.WorkerSerial)
	if n := len(o.list("dals-"+h.id, "containers")); n == 0 {
		t.Fatal("no container in the operator's containerd")
	}
	if private := h.having(h.dir + "/containerd/config.toml"); len(private) > 0 {
		t.Errorf("a private containerd runs: %v", private)
	}

	h.kill()
	h.flags = nil // the folder knows where its workers are
	h.start()
	s.outlived(0)
	h.kill()
	if stdout, stderr, code := h.run("recover"); code != 0 || strings.Contains(stdout, "does not have it") { // which looks there, too
		t.Errorf("recover: exit %d: %s%s", code, stdout, stderr)
	}
	h.wantNoStart("this host's workers are under the containerd at "+o.address, "use --containerd "+o.address, "--containerd", "private")
	h.start()

	o.stop()
	h.eventually("doctor tells that it is away", func() error {
		if stdout, _, _ := h.run("doctor"); !strings.Contains(stdout, "launcher: workers run on") {
			return errors.New(stdout)
		}
		return nil
	})
	h.mustSend("nora", "rogue.count", map[string]int{"n": 0})
	o.start()
	h.eventually("it is back", func() error {
		if stdout, _, _ := h.run("doctor"); strings.Contains(stdout, "launcher: workers run on") {
			return errors.New(stdout)
		}
		return nil
	})
	s.outlived(0)
	if after := h.pids(s.live.WorkerSerial); !slices.Equal(before, after) {
		t.Errorf("processes %v, were %v", after, before)
	}
	h.signal(s.live.WorkerSerial, syscall.SIGKILL)
	s.outlived(1)

	for _, command := range []string{"stop", "start", "stop", "retire"} {
		if _, stderr, code := h.run(command, "nora"); code != 0 {
			t.Fatalf("%s: exit %d: %s", command, code, stderr)
		}
	}
	if slices.Contains(o.list("dals-"+h.id, "containers"), s.live.WorkerSerial) {
		t.Error("a retired worker has a container")
	}
	h.forge("leo", "template")
	h.down()
	o.wantRunning()
	if left := o.list("default", "namespaces"); !slices.Equal(left, []string{"default"}) {
		t.Errorf("namespaces after the host's end: %v", left)
	}
	// The next host brings them up again, wherever it is told to.
	h.flags = []string{"--containerd", "private"}
	h.start()
	h.eventually("leo lives again", func() error {
		if w := h.worker("leo"); w.State != "live" || !w.VaultIntegrity {
			return fmt.Errorf("%s: %s", w.State, w.StateReason)
		}
		return nil
	})
	h.mustSend("leo", "template.echo", map[string]string{"message": "elsewhere"})
	o.wantRunning()
}

// TestContainerdTooOld: a host on such a machine says so, with the version and what
// to do; so does doctor.
func TestContainerdTooOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := filepath.Join(dir, "containerd")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho containerd github.com/containerd/containerd 1.4.13~ds1 1.4.13~ds1-1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const why = "containerd cannot be used: version 1.4.13~ds1 is too old, at least 1.6.0 is needed"
	const hint = "install containerd 1.6.0 or later"
	for command, code := range map[string]int{"serve": 1, "serve --launcher containerd": 1, "doctor": 1} {
		// In a mount namespace of its own it is every containerd that there is.
		cmd := exec.Command("unshare", "--mount", "sh", "-c",
			`for c in $(which -a containerd | xargs readlink -f | sort -u); do mount --bind "$0" "$c"; done; exec "$@"`,
			old, filepath.Join(bin, "dals-host"), "--data-dir", filepath.Join(dir, "data"))
		cmd.Args = append(cmd.Args, strings.Fields(command)...)
		text, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(text), why) || !strings.Contains(string(text), hint) {
			t.Errorf("%s: %v: %s", command, err, text)
		}
	}
}
