// Package launchtest is the contract of launch.Launcher as a test suite. A
// launcher's tests call Main from TestMain and Run from a test; both make
// launchers with the same Open function.
//
// The suite runs real workers (package testworker, built once per test binary),
// kills real hosts (the test binary itself, started again) and looks for what
// is left behind in /proc, /sys/fs/cgroup and /run. Everything that is true of
// one launcher only belongs into that launcher's own tests; Bench gives them
// the same tools.
package launchtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/host/launch"
)

// Config has the fields of each launcher's Config, which it converts to.
type Config struct {
	DataDir string
	HostID  string
	Logger  hclog.Logger
}

// Open makes the launcher under test over a data folder. Opening a folder again
// stands for a new host.
type Open func(Config) (launch.Launcher, error)

// EnvBinary names the environment variable with the path of the built test
// worker. Main sets it, unless it is set already.
const EnvBinary = "DALS_LAUNCHTEST_BINARY"

// envHost, where set, makes the test binary act as a host; see host.go.
const envHost = "DALS_LAUNCHTEST_HOST"

// Main runs the tests of a launcher's package and returns the exit code. It
// builds the test worker and, afterwards, looks for leaked goroutines.
func Main(m *testing.M, open Open) int {
	if plan := os.Getenv(envHost); plan != "" {
		return actAsHost(plan, open)
	}
	if os.Getenv(EnvBinary) == "" {
		dir, err := os.MkdirTemp("", "launchtest")
		if err != nil {
			fmt.Fprintln(os.Stderr, "launchtest:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := build(filepath.Join(dir, "testworker")); err != nil {
			fmt.Fprintln(os.Stderr, "launchtest:", err)
			return 1
		}
	}
	if code := m.Run(); code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "launchtest:", err)
		return 1
	}
	return 0
}

func build(path string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/dals-host/dals-host/host/launch/launchtest/testworker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build test worker: %w\n%s", err, out)
	}
	return os.Setenv(EnvBinary, path)
}

// Run holds a launcher to its contract.
func Run(t *testing.T, open Open) {
	b := NewBench(t, open)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *Bench)
	}{
		{"life", life},
		{"exit codes", exitCodes},
		{"exit at start", exitAtStart},
		{"killed from outside", killedFromOutside},
		{"unknown workers", unknownWorkers},
		{"bad specs", badSpecs},
		{"no twins", noTwins},
		{"one of many starts wins", oneStartWins},
		{"dead workers start only after a stop", deadNeedsStop},
		{"a stop ends the deaf", stopEndsTheDeaf},
		{"a stop ends children", stopEndsChildren},
		{"a stop ends children in disguise", stopEndsTheDisguised},
		{"a removal ends all", removalEndsAll},
		{"wait ends with its context", waitEndsWithContext},
		{"log", log},
		{"log of one stream", logOfOneStream},
		{"own files only", ownFilesOnly},
		{"own identity", ownIdentity},
		{"mounts", mountsAreShown},
		{"mounts that changed", changedMountsAreRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, b.For(t))
		})
	}
	for _, c := range []struct {
		name string
		run  func(*testing.T, Open)
	}{
		{"close detaches", closeDetaches},
		{"abandoned host", abandonedHost},
		{"killed host", killedHost},
		{"killed at any moment", killedAtAnyMoment},
		{"down refuses while workers are left", downRefuses},
		{"what was prepared is discarded when nobody uses it", discards},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, open)
		})
	}
}
