package catalog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// cagedRig is a rig whose plugins are probed in containers, with a real
// containerd. When the test ends nothing of either may be left.
func cagedRig(t *testing.T, runtime string) (*rig, *PluginProber) {
	t.Helper()
	r := newRig(t)
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	hostID := hex.EncodeToString(id)
	r.hostID = hostID
	l, err := containerd.New(t.Context(), containerd.Config{
		DataDir: filepath.Join(r.data, "private"), HostID: hostID, Runtime: runtime, Logger: hclog.New(&hclog.LoggerOptions{Output: t.Output(), Level: hclog.Debug}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Down(context.Background()), l.Close()); err != nil {
			t.Error(err)
		}
		for _, left := range launchtest.Leaks(launchtest.Config{DataDir: filepath.Join(r.data, "private"), HostID: hostID}) {
			t.Errorf("left behind: %s", left)
		}
		r.leftNothing()
	})
	p, err := NewProber(ProberConfig{Dir: filepath.Join(r.data, "probe"), UID: r.uid, Cage: l})
	if err != nil {
		t.Fatal(err)
	}
	return r, p
}

// TestCagedProbe: plugins that mean harm do none, and are told so; good ones are
// registered in time.
func TestCagedProbe(t *testing.T) {
	t.Parallel()
	for _, runtime := range []string{containerd.Crun, containerd.Runc} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			r, p := cagedRig(t, runtime)
			outside, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer outside.Close()
			r.startWith(p)
			plugins := map[string]struct {
				do     script
				reason string
			}{
				"fork":    {script{Do: "fork bomb"}, "the handshake"}, // it hangs, or dies of it
				"memory":  {script{Do: "memory bomb"}, "took more memory than the 512 MiB that it may"},
				"hang":    {script{Do: "hang"}, "did not finish the handshake within 5s"},
				"late":    {script{Do: "hang describing"}, "did not describe itself within 5s"},
				"write":   {script{Do: "write"}, "panic: []"},
				"network": {script{Do: "network", Line: outside.Addr().String()}, "connect: connection refused"},
				"panic":   {script{Do: "panic"}, "exited with code 2 before the handshake: panic: the goat ate the config"},
				"symlink": {script{Do: "symlink"}, "names something as its socket that is none of its own"},
				"deaf":    {script{Do: "deaf"}, "did not describe itself within 5s"},
				"noise":   {script{Line: "hello"}, "prints on stdout before the handshake"},
				"outside": {script{Do: "print", Line: "1|1|unix|/run/s|grpc\n"}, "listens outside its folder"},
			}
			for name, c := range plugins {
				r.drop("dals-worker-"+name, plug(t, c.do))
			}
			for name, c := range plugins {
				got := r.awaitVerdict(filepath.Join(r.dir, "dals-worker-"+name), c.reason)
				if got.State != Quarantined || !strings.Contains(got.Reason, c.reason) || got.Fix == "" {
					t.Errorf("%s: %q (fix %q), want %q", name, got.Reason, got.Fix, c.reason)
				}
			}
			began := time.Now()
			goat := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
			r.awaitVerdict(goat, "")
			r.await(goat, Registered)
			t.Logf("from drop to registered: %v", time.Since(began))
		})
	}
}

// TestCagedConfinement asks a plugin how it is confined.
func TestCagedConfinement(t *testing.T) {
	t.Parallel()
	r, p := cagedRig(t, "")
	d, err := p.Probe(t.Context(), stored(t, r.data, plug(t, script{Do: "tell"})))
	if err != nil {
		t.Fatal(err)
	}
	told := strings.ReplaceAll(d.Summary, "Groups:", "Groups: ")
	for _, want := range []string{
		fmt.Sprintf("Uid:_%[1]d_%[1]d_%[1]d_%[1]d", r.uid), "Groups: ", "NoNewPrivs:_1", "Max_core_file_size_0_0_", "pid_1 ", "interfaces_1",
	} {
		if !strings.Contains(told, want) {
			t.Errorf("%q is missing in what it tells: %s", want, told)
		}
	}
	allowed := "$DALS_PLUGIN $PLUGIN_MIN_PORT $PLUGIN_MAX_PORT $PLUGIN_PROTOCOL_VERSIONS $PLUGIN_UNIX_SOCKET_DIR $HOME"
	for word := range strings.FieldsSeq(told) {
		if strings.HasPrefix(word, "$") && !strings.Contains(allowed, word) {
			t.Errorf("it has %s in its environment", word)
		}
	}
}

// TestCagedProbeOfTheDynamic: a binary that needs others is told to link itself.
func TestCagedProbeOfTheDynamic(t *testing.T) {
	t.Parallel()
	binary, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{containerd.Crun, containerd.Runc} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			r, p := cagedRig(t, runtime)
			_, err := p.Probe(t.Context(), stored(t, r.data, binary))
			fault, ok := errors.AsType[*Fault](err)
			if !ok || !strings.Contains(fault.Fix, "CGO_ENABLED=0") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestCagedHostKilled: what a killed host was probing, the next one removes before
// it does anything else.
func TestCagedHostKilled(t *testing.T) {
	t.Parallel()
	r, p := cagedRig(t, "")
	host := exec.Command("/proc/self/exe", "-test.run=^TestRoleCagedProbe$")
	host.Env = append(os.Environ(), roleEnv+"=caged", "CATALOG_TEST_DATA="+r.data, "CATALOG_TEST_UID="+strconv.Itoa(r.uid), "CATALOG_TEST_HOST="+r.hostID)
	host.Stderr = os.Stderr
	binary := stored(t, r.data, plug(t, script{Do: "hang"}))
	host.ExtraFiles, host.Env = []*os.File{binary}, append(host.Env, "CATALOG_TEST_BINARY="+binary.Name())
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
	if len(processesOf(t, r.uid)) == 0 {
		t.Error("the plugin did not outlive its host: this shows nothing")
	}
	next, err := containerd.New(t.Context(), containerd.Config{DataDir: filepath.Join(r.data, "private"), HostID: r.hostID, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	if left := processesOf(t, r.uid); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if _, err := NewProber(p.cfg); err != nil { // which removes the folder
		t.Error(err)
	}
}

// TestRoleCagedProbe is the host that is killed: it runs in a process of its own.
func TestRoleCagedProbe(t *testing.T) {
	if os.Getenv(roleEnv) != "caged" {
		return
	}
	uid, err := strconv.Atoi(os.Getenv("CATALOG_TEST_UID"))
	if err != nil {
		t.Fatal(err)
	}
	data := os.Getenv("CATALOG_TEST_DATA")
	l, err := containerd.New(t.Context(), containerd.Config{DataDir: filepath.Join(data, "private"), HostID: os.Getenv("CATALOG_TEST_HOST"), Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProber(ProberConfig{Dir: filepath.Join(data, "probe"), UID: uid, Cage: l})
	if err != nil {
		t.Fatal(err)
	}
	p.patience = time.Minute
	_, err = p.Probe(t.Context(), os.NewFile(3, os.Getenv("CATALOG_TEST_BINARY")))
	t.Fatalf("the probe ended: %v", err)
}
