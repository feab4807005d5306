package workertest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/dals-host/dals-host/sdk"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Main is a TestMain that lets the test binary stand in for the plugin binary:
// started as a probe or a worker it is one, and StartBinary(t, os.Args[0]) needs
// no build. run is the rest of TestMain, usually m.Run or goleak's.
func Main(newType func() sdk.Type, run func()) {
	handshake := wire.Handshake()
	if os.Getenv(handshake.MagicCookieKey) != "" || os.Getenv(wire.WorkerDirEnv) != "" {
		sdk.Serve(newType())
	}
	run()
}

// StartBinary probes the plugin binary at path, runs a worker of its type as a
// process, the way a launcher does, and returns when it answers.
func StartBinary(t testing.TB, path string, options ...Option) *Worker {
	t.Helper()
	w := NewBinary(t, path, options...)
	w.Start()
	return w
}

// NewBinary probes the plugin binary at path and makes the folder of a worker of
// its type, to be started by Start or Run as a process.
func NewBinary(t testing.TB, path string, options ...Option) *Worker {
	t.Helper()
	path, err := filepath.Abs(path)
	must(t, err)
	w := newWorker(t, Probe(t, path), options)
	w.run = func(context.Context) process { return w.spawn(path) }
	return w
}

// spawn starts the binary as a worker. Its folder is its descriptor 3.
func (w *Worker) spawn(path string) process {
	cmd := exec.Command(path)
	// Nothing else, as in a container; a race-built binary need not linger.
	cmd.Env = []string{wire.WorkerDirEnv + "=/proc/self/fd/3", "GORACE=atexit_sleep_ms=0"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{w.folder}
	cmd.Stderr = w.log // stdout goes nowhere: a worker claims it for the log
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		done <- err
		return process{done: done, stop: func() {}, kill: func() {}}
	}
	go func() { done <- cmd.Wait() }()
	return process{
		done: done,
		stop: func() { _ = cmd.Process.Signal(syscall.SIGTERM) }, // it may have ended
		kill: func() { _ = cmd.Process.Kill() },
	}
}

// Kill ends a worker that is a process at once, with SIGKILL.
func (w *Worker) Kill() {
	w.t.Helper()
	if w.process.kill == nil {
		w.t.Fatal("kill worker: it is not a process that runs")
	}
	w.process.kill()
	_ = w.Wait() // "signal: killed"
}

// Probe asks the plugin binary at path what it provides, as a host does.
func Probe(t testing.TB, path string) *workerv1.TypeDescriptor {
	t.Helper()
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  wire.Handshake(),
		Plugins:          wire.PluginSet(nil),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Cmd:              exec.Command(path),
		Logger:           hclog.NewNullLogger(),
	})
	defer client.Kill()
	protocol, err := client.Client()
	must(t, err)
	raw, err := protocol.Dispense(wire.PluginName)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	response, err := raw.(workerv1.PluginServiceClient).Describe(ctx, &workerv1.DescribeRequest{})
	must(t, err)
	return response.GetDescriptor_()
}
