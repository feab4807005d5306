package containerd

import (
	"context"
	"os"
	"testing"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// with opens the launcher with an OCI runtime.
func with(runtime string) launchtest.Open {
	return func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Runtime: runtime, Logger: c.Logger})
	}
}

// open leaves the choice of the runtime to the launcher.
func open(c launchtest.Config) (launch.Launcher, error) { return with("")(c) }

// envAddress is, for test binaries that act as a host, the containerd to use.
const envAddress = "DALS_TEST_CONTAINERD"

// under opens the launcher with a containerd that somebody else runs.
func under(address string) launchtest.Open {
	return func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Address: address, Logger: c.Logger})
	}
}

func TestMain(m *testing.M) { os.Exit(launchtest.Main(m, under(os.Getenv(envAddress)))) }

func TestContract(t *testing.T) {
	for _, runtime := range []string{Crun, Runc} {
		t.Run(runtime, func(t *testing.T) { launchtest.Run(t, with(runtime)) })
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
