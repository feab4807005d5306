package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
)

// TestMain puts the shim beside the test binary, where the launcher looks for it.
func TestMain(m *testing.M) {
	if err := buildShim(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func buildShim() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	build := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(self), shim.Binary), "github.com/dals-host/dals-host/cmd/"+shim.Binary)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build shim: %w\n%s", err, text)
	}
	return nil
}
