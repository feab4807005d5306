package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// with opens the launcher with an OCI runtime and our shim.
func with(runtime string) launchtest.Open { return withShim(runtime, os.Getenv(envShim)) }

func withShim(runtime, shim string) launchtest.Open {
	return func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Runtime: runtime, Shim: shim, Logger: c.Logger})
	}
}

// envShim is the path of our shim, once it is built.
const envShim = "DALS_TEST_SHIM"

// open leaves the choice of the runtime to the launcher.
func open(c launchtest.Config) (launch.Launcher, error) { return with("")(c) }

// envAddress is, for test binaries that act as a host, the containerd to use.
const envAddress = "DALS_TEST_CONTAINERD"

// under opens the launcher with a containerd that somebody else runs.
func under(address string) launchtest.Open {
	return func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Address: address, Shim: os.Getenv(envShim), Logger: c.Logger})
	}
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv(envForbidden) != "" {
		return askForbidden()
	}
	if os.Getenv(envShim) == "" {
		dir, err := os.MkdirTemp("", "dals-shim-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, shim.Binary)
		build := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/dals-host/dals-host/cmd/"+shim.Binary)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build shim: %v\n%s", err, text)
			return 1
		}
		if err := os.Setenv(envShim, path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return launchtest.Main(m, under(os.Getenv(envAddress)))
}

// itsShimPath is containerd's own shim.
var itsShimPath = lookPath(itsShim)

func TestContract(t *testing.T) {
	for _, runtime := range []string{Crun, Runc} {
		t.Run(runtime, func(t *testing.T) { launchtest.Run(t, with(runtime)) })
	}
	t.Run("containerd's shim", func(t *testing.T) { launchtest.Run(t, withShim(Crun, itsShimPath)) })
}

// shims runs a test with our shim and with containerd's.
func shims(t *testing.T, test func(t *testing.T, open launchtest.Open)) {
	for name, path := range map[string]string{"ours": os.Getenv(envShim), "containerd's": itsShimPath} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, withShim("", path))
		})
	}
}

// BenchmarkStart is Create and Start until the worker answers; BenchmarkStop
// what it takes to be rid of it again.
func BenchmarkStart(b *testing.B) {
	bench := launchtest.NewBench(b, open)
	for b.Loop() {
		g := bench.Guest()
		b.StopTimer()
		bench.Remove(g.Spec.Serial)
		b.StartTimer()
	}
}

func BenchmarkStop(b *testing.B) {
	bench := launchtest.NewBench(b, open)
	for b.Loop() {
		b.StopTimer()
		g := bench.Guest()
		b.StartTimer()
		bench.Remove(g.Spec.Serial)
	}
}
