package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// stored puts content into a store and opens it.
func stored(t *testing.T, dir string, content []byte) *os.File {
	t.Helper()
	s, err := openStore(filepath.Join(dir, "store"), os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := s.put(t.Context(), strings.NewReader(string(content)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.open(digest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A plugin tells how it is confined.
func TestConfinement(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	d, err := r.prober().Probe(t.Context(), stored(t, r.data, plug(t, script{Do: "tell"})))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:_%[1]d_%[1]d_%[1]d_%[1]d", r.uid), "Groups: ", "NoNewPrivs:_1",
		"Max_core_file_size_0_0_", "Max_data_size_1073741824_1073741824_", "Max_processes_256_256_", "pid_1 ",
	} {
		if !strings.Contains(strings.ReplaceAll(d.Summary, "Groups:", "Groups: "), want) {
			t.Errorf("%q is missing in what it tells: %s", want, d.Summary)
		}
	}
	if !strings.HasSuffix(d.Summary, "interfaces_1") { // its own loopback, which is down
		t.Errorf("it sees a network: %s", d.Summary)
	}
	allowed := "$DALS_PLUGIN $PLUGIN_MIN_PORT $PLUGIN_MAX_PORT $PLUGIN_PROTOCOL_VERSIONS $PLUGIN_UNIX_SOCKET_DIR"
	for word := range strings.FieldsSeq(d.Summary) {
		if strings.HasPrefix(word, "$") && !strings.Contains(allowed, word) {
			t.Errorf("it has %s in its environment", word)
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(status), "\nNoNewPrivs:\t0\n") || !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n") {
		t.Errorf("the probe changed the host itself: %v\n%s", err, status)
	}
}

// Two plugins at a time, whoever asks for more waits.
func TestTwoProbesAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.prober()
	f := stored(t, r.data, plug(t, script{Do: "hang"}))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if _, err := p.Probe(ctx, f); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
		})
	}
	eventually(t, func() error {
		n := len(processesOf(t, r.uid)) + len(processesOf(t, r.uid+1))
		if n > probesAtOnce {
			t.Errorf("%d at a time", n)
		}
		if n < probesAtOnce {
			return fmt.Errorf("only %d run", n)
		}
		return nil
	})
	cancel()
	all.Wait()
	r.leftNothing()
}

// A file that was just written can be executed, whatever the rest of the host
// forks meanwhile.
func TestWrittenAndExecutedWhileOthersFork(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var storm sync.WaitGroup
	for range 3 {
		storm.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("/bin/true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	content, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range 60 {
		f := stored(t, dir, append(content, strconv.Itoa(i)...))
		if err := exec.Command(fmt.Sprintf("/proc/self/fd/%d", f.Fd())).Run(); err != nil {
			t.Fatalf("execution %d: %v", i, err)
		}
	}
	cancel()
	storm.Wait()
}

// When the host is killed in the middle of a probe, the plugin is gone with it,
// and the next host removes what is left.
func TestHostKilledWhileProbing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	host := exec.Command("/proc/self/exe", "-test.run=^TestRoleProbe$")
	host.Env = append(os.Environ(), roleEnv+"=probe", "CATALOG_TEST_DATA="+r.data, "CATALOG_TEST_UID="+strconv.Itoa(r.uid))
	host.Stderr = os.Stderr
	f := stored(t, r.data, plug(t, script{Do: "hang"}))
	host.ExtraFiles = []*os.File{f}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if len(processesOf(t, r.uid)) == 0 {
			return errors.New("the plugin does not run")
		}
		return nil
	})
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait()
	eventually(t, func() error {
		if left := processesOf(t, r.uid); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	r.prober()
	r.leftNothing()
}

// TestRoleProbe is the host that is killed: it runs in a process of its own.
func TestRoleProbe(t *testing.T) {
	if os.Getenv(roleEnv) != "probe" {
		return
	}
	uid, err := strconv.Atoi(os.Getenv("CATALOG_TEST_UID"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProber(ProberConfig{Dir: filepath.Join(os.Getenv("CATALOG_TEST_DATA"), "probe"), UID: uid})
	if err != nil {
		t.Fatal(err)
	}
	p.patience = time.Minute
	_, err = p.Probe(t.Context(), os.NewFile(3, "plugin"))
	t.Fatalf("the probe ended: %v", err)
}

// Without the right to make namespaces, a probe still leaves nothing behind.
func TestHostMayNotMakeNamespaces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	host := exec.Command("/proc/self/exe", "-test.run=^TestRoleBare$", "-test.v")
	host.Env = append(os.Environ(), roleEnv+"=bare", "CATALOG_TEST_DATA="+r.data, "CATALOG_TEST_UID="+strconv.Itoa(r.uid))
	host.ExtraFiles = []*os.File{stored(t, r.data, plug(t, script{Do: "fork"}))}
	out, err := host.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRoleBare") {
		t.Fatalf("%v\n%s", err, out)
	}
	r.leftNothing()
}

// TestRoleBare is the host that may not: it gives up the capability and executes
// itself once more.
func TestRoleBare(t *testing.T) {
	switch os.Getenv(roleEnv) {
	case "bare":
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(3, unix.F_SETFD, 0); err != nil { // keep it
			t.Fatal(err)
		}
		t.Setenv(roleEnv, "barer")
		t.Fatal(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "barer":
		uid, err := strconv.Atoi(os.Getenv("CATALOG_TEST_UID"))
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		p, err := NewProber(ProberConfig{
			Dir: filepath.Join(os.Getenv("CATALOG_TEST_DATA"), "probe"), UID: uid,
			Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
		})
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Probe(t.Context(), os.NewFile(3, "plugin"))
		if err != nil || d.Name != "goat" || !strings.Contains(log.String(), "probed without namespaces") || strings.Contains(log.String(), "left") {
			t.Fatalf("%v, %v, log %q", d, err, log.String())
		}
	}
}

// A host that is not root registers the same plugins, as itself.
func TestHostIsNotRoot(t *testing.T) {
	t.Parallel()
	const uid = 59999
	dir, err := os.MkdirTemp("", "catalog-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, content := range map[string][]byte{
		"goat": good(t, "goat", "1.0.0", "GT"), "secret": good(t, "secret", "1.0.0", "SE"), "panic": plug(t, script{Do: "panic"}),
	} {
		if err := os.WriteFile(filepath.Join(dir, "dals-worker-"+name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, uid), os.Chmod(filepath.Join(dir, "dals-worker-secret"), 0o700)); err != nil {
		t.Fatal(err)
	}
	host := exec.Command("/proc/self/exe", "-test.run=^TestRoleUser$", "-test.v")
	host.Env = []string{roleEnv + "=user", "CATALOG_TEST_DATA=" + dir, "TMPDIR=" + dir, "PATH=/usr/bin:/bin"}
	host.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := host.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRoleUser") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRoleUser is the host that is not root: it runs in a process of its own.
func TestRoleUser(t *testing.T) {
	if os.Getenv(roleEnv) != "user" {
		return
	}
	r := newRig(t)
	r.dir = os.Getenv("CATALOG_TEST_DATA")
	r.uid = 0 // it has none to give
	r.start()
	r.await(filepath.Join(r.dir, "dals-worker-goat"), Registered)
	if p := r.await(filepath.Join(r.dir, "dals-worker-secret"), Quarantined); p.Reason != "cannot be read by the host" || p.Fix != "chmod a+r "+p.Path {
		t.Errorf("unreadable: %+v", p)
	}
	if p := r.await(filepath.Join(r.dir, "dals-worker-panic"), Quarantined); !strings.Contains(p.Reason, "panic: the goat ate the config") {
		t.Errorf("panic: %+v", p)
	}
	r.stop()
	if left, err := os.ReadDir(filepath.Join(r.data, "probe")); err != nil || len(left) > 0 {
		t.Errorf("the probes left %v, %v", left, err)
	}
}
