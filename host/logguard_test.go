package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/internal/workerlog"
	"github.com/dals-host/dals-host/host/launch"
)

// TestNoGuard: a host whose log guard cannot be started comes up.
func TestNoGuard(t *testing.T) {
	t.Parallel()
	h, err := New(t.Context(), Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Launcher: launcherProcess, LogGuard: []string{"/proc/none"}, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
}

// TestGuardBesideAHost: a guard whose host has died leaves the logs to the host that
// has come since, also when that one has not seen it.
func TestGuardBesideAHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	logs := filepath.Join(pathsOf(dir).workers, "instances", "DMN-TP-1-0000abcd-00001", launch.LogsDir)
	err := errors.Join(os.MkdirAll(logs, 0o700), os.WriteFile(filepath.Join(logs, launch.LogFile), make([]byte, workerlog.MaxBytes+1), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	guard := func(ctx context.Context) <-chan error {
		ended := make(chan error, 1)
		go func() { ended <- GuardLogs(ctx, dir, strings.NewReader(""), hclog.NewNullLogger()) }()
		return ended
	}
	files := func() int {
		list, err := os.ReadDir(logs)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	host := flock.New(pathsOf(dir).lock)
	if err := host.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := <-guard(t.Context()); err != nil || files() != 1 {
		t.Errorf("beside a host: %v, %d files of logs", err, files())
	}

	ctx, cancel := context.WithCancel(t.Context())
	ended := guard(ctx)
	if err := host.Unlock(); err != nil { // it was dying, and is dead
		t.Fatal(err)
	}
	for files() != 2 {
		select {
		case err := <-ended:
			t.Fatalf("a guard without a host has ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
