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
