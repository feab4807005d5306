package containerd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/wire"
)

// builtPlugin is a plugin of our own, built when it is first asked for.
var builtPlugin = sync.OnceValue(func() string {
	path := filepath.Join(filepath.Dir(os.Getenv(launchtest.EnvBinary)), "plugin")
	build := exec.Command("go", "build", "-o", path, "github.com/dals-host/dals-host/plugins/template")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("build plugin: %v\n%s", err, out)
	}
	return path
})

func runnerBench(t *testing.T) (*launchtest.Bench, *containerd.Launcher) {
	t.Helper()
	b := launchtest.NewBench(t, func(c launchtest.Config) (launch.Launcher, error) {
		return containerd.New(context.Background(), containerd.Config{DataDir: c.DataDir, HostID: c.HostID, Logger: c.Logger})
	})
	return b, b.Launcher.(*containerd.Launcher)
}

func runnerOf(t *testing.T, l *containerd.Launcher, image launch.Image, life time.Duration) *containerd.Runner {
	t.Helper()
	cookie := wire.Handshake()
	r, err := l.NewRunner(containerd.RunnerConfig{Image: image, UID: launchtest.UID(), Life: life}, []string{cookie.MagicCookieKey + "=" + cookie.MagicCookieValue, "PLUGIN_PROTOCOL_VERSIONS=1"}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRunnerEnds: whichever way a plugin ends, its container is gone when Wait
// returns, and its end is told.
func TestRunnerEnds(t *testing.T) {
	t.Parallel()
	b, l := runnerBench(t)
	serving, err := store(t.TempDir(), builtPlugin())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		image launch.Image // that of the bench ends by itself: it finds no folder
		life  time.Duration
		end   func(*containerd.Runner) error
		want  string
	}{
		{"by itself", b.Image, time.Minute, func(*containerd.Runner) error { return nil }, "exit code 1"},
		{"killed", serving, time.Minute, func(r *containerd.Runner) error { return r.Kill(t.Context()) }, "ended while no host was watching"},
		{"out of time", serving, time.Second, func(*containerd.Runner) error { return nil }, "ended while no host was watching"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := runnerOf(t, l, c.image, c.life)
			if err := r.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if workers, err := l.List(t.Context()); err != nil || len(workers) > 0 {
				t.Errorf("it is taken for a worker: %+v, %v", workers, err)
			}
			if err := c.end(r); err != nil {
				t.Error(err)
			}
			said, err := io.ReadAll(r.Stderr()) // to its end
			if err != nil {
				t.Error(err)
			}
			if err := r.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("it said %q, its end is %v; want %s", said, err, c.want)
			}
			_ = errors.Join(r.Stdout().Close(), r.Stderr().Close())
		})
	}
}

// TestRunnerSockets: an address is good for as long as the plugin is there, whatever
// else is asked for.
func TestRunnerSockets(t *testing.T) {
	t.Parallel()
	_, l := runnerBench(t)
	image, err := store(t.TempDir(), builtPlugin())
	if err != nil {
		t.Fatal(err)
	}
	r := runnerOf(t, l, image, time.Minute)
	if err := r.Wait(t.Context()); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("wait for one that was not started: %v", err)
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(r.Stdout()).ReadString('\n')
	says := strings.Split(line, "|") // core protocol, own, network, address and more
	if err != nil || len(says) < 4 {
		t.Fatalf("it said %q, %v", line, err)
	}
	var addresses []string
	for range 2 {
		network, address, err := r.PluginToHost(says[2], says[3])
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, address)
		for _, known := range addresses {
			conn, err := net.Dial(network, known)
			if err != nil {
				t.Errorf("%s: %v", known, err)
				continue
			}
			conn.Close()
		}
	}
	for i := 0; err == nil; i++ {
		if _, _, err = r.PluginToHost(says[2], says[3]); i > 100 {
			t.Fatal("it may have any number of sockets")
		}
	}
	if !errors.Is(err, worker.ErrInvalid) {
		t.Error(err)
	}
	if err := r.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("unix", addresses[0]); err == nil {
		conn.Close()
		t.Error("the socket of a plugin that is gone is there")
	}
	_ = errors.Join(r.Stdout().Close(), r.Stderr().Close())
}

// TestRunnerEndsWithLauncher: Close ends plugins, which no later host would find.
func TestRunnerEndsWithLauncher(t *testing.T) {
	t.Parallel()
	b, l := runnerBench(t)
	image, err := store(t.TempDir(), builtPlugin())
	if err != nil {
		t.Fatal(err)
	}
	r := runnerOf(t, l, image, time.Minute)
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Ended():
	default:
		t.Error("it lives on")
	}
	if err := runnerOf(t, l, image, time.Minute).Start(t.Context()); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("start after close: %v", err)
	}
	b.Reopen() // for the bench to clean up and look for leftovers
}

func TestRunnerRefuses(t *testing.T) {
	t.Parallel()
	b, l := runnerBench(t)
	good := containerd.RunnerConfig{Image: b.Image, UID: 70000, Life: time.Second}
	for name, spoil := range map[string]func(*containerd.RunnerConfig){
		"root":      func(c *containerd.RunnerConfig) { c.UID = 0 },
		"no digest": func(c *containerd.RunnerConfig) { c.Image.Digest = "x" },
		"no life":   func(c *containerd.RunnerConfig) { c.Life = 0 },
	} {
		bad := good
		spoil(&bad)
		if _, err := l.NewRunner(bad, nil, t.TempDir()); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := b.Image
	other.Digest = strings.Repeat("0", 64)
	if err := runnerOf(t, l, other, time.Second).Start(t.Context()); !errors.Is(err, worker.ErrCorrupt) {
		t.Errorf("other bytes than the digest's: %v", err)
	}
}
