package containerd

import (
	"context"
	"os"
	"testing"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

func open(cfg launchtest.Config) (launch.Launcher, error) {
	return New(context.Background(), Config(cfg))
}

func TestMain(m *testing.M) { os.Exit(launchtest.Main(m, open)) }

func TestContract(t *testing.T) { launchtest.Run(t, open) }

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
