package containerd_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/wire"
)

// A whole life of one worker, on a data folder of its own.
func Example() {
	data, err := os.MkdirTemp("", "dals-example-")
	if err == nil {
		defer os.RemoveAll(data)
		err = live(context.Background(), data)
	}
	if err != nil {
		fmt.Printf("%v: %s\n", err, worker.HintOf(err))
	}
	// Output:
	// it runs: true
	// exit code 0
}

func live(ctx context.Context, data string) (err error) {
	l, err := containerd.New(ctx, containerd.Config{DataDir: data, HostID: "0123456789abcdef", Logger: hclog.NewNullLogger()})
	if err != nil {
		return err
	}
	// Close alone leaves workers and containerd running, for the next New.
	defer func() { err = errors.Join(err, l.Down(ctx), l.Close()) }()

	image, err := store(data, os.Getenv(launchtest.EnvBinary)) // any static binary that serves until SIGTERM
	if err != nil {
		return err
	}
	if _, err := l.Prepare(ctx, image); err != nil {
		return err
	}
	spec := launch.Spec{Serial: "DMN-TP-1-deadbeef-00000", Image: image, Dir: filepath.Join(data, "worker"), UID: 70000}
	if err := makeFolder(spec); err != nil {
		return err
	}
	if err := l.Create(ctx, spec); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Remove(ctx, spec.Serial)) }()
	if err := l.Start(ctx, spec.Serial); err != nil {
		return err
	}
	running, err := l.List(ctx)
	if err != nil {
		return err
	}
	fmt.Println("it runs:", len(running) == 1 && running[0].Running)
	awaitSocket(spec) // it knows what to do about SIGTERM from then on

	if err := l.Stop(ctx, spec.Serial, 20*time.Second); err != nil { // settles the run; Start may follow
		return err
	}
	exit, err := l.Wait(ctx, spec.Serial)
	if err != nil {
		return err
	}
	fmt.Println(exit)
	return nil
}

// store copies a binary to where its digest is its name.
func store(data, binary string) (launch.Image, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return launch.Image{}, err
	}
	sum := sha256.Sum256(content)
	image := launch.Image{Digest: hex.EncodeToString(sum[:]), Type: "example", Version: "1.0.0"}
	image.Path = filepath.Join(data, image.Digest)
	return image, os.WriteFile(image.Path, content, 0o555)
}

// makeFolder makes what a worker has to find: it owns state/ and run/.
func makeFolder(s launch.Spec) error {
	err := os.Mkdir(s.Dir, 0o755)
	for _, name := range []string{launch.LogsDir, launch.StateDir, launch.RunDir} {
		err = errors.Join(err, os.Mkdir(filepath.Join(s.Dir, name), 0o700))
	}
	for _, name := range []string{launch.StateDir, launch.RunDir} {
		err = errors.Join(err, os.Chown(filepath.Join(s.Dir, name), s.UID, s.UID))
	}
	return err
}

func awaitSocket(s launch.Spec) {
	for {
		if _, err := os.Stat(filepath.Join(s.Dir, launch.RunDir, launch.SocketFile)); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// A plugin that nobody trusts, asked by go-plugin in a container.
func ExampleLauncher_RunnerFunc() {
	data, err := os.MkdirTemp("", "dals-example-")
	if err == nil {
		defer os.RemoveAll(data)
		err = ask(context.Background(), data)
	}
	if err != nil {
		fmt.Println(err)
	}
	// Output: speaks grpc, version 1
}

func ask(ctx context.Context, data string) (err error) {
	l, err := containerd.New(ctx, containerd.Config{DataDir: data, HostID: "0123456789abcdee", Logger: hclog.NewNullLogger()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(ctx), l.Close()) }()
	image, err := store(data, builtPlugin())
	if err != nil {
		return err
	}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  wire.Handshake(),
		Plugins:          wire.PluginSet(nil),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		RunnerFunc:       l.RunnerFunc(containerd.RunnerConfig{Image: image, UID: 70001, Life: time.Minute}),
		SkipHostEnv:      true,
		AutoMTLS:         true,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: data},
		Logger:           hclog.NewNullLogger(),
	})
	defer client.Kill()
	rpc, err := client.Client()
	if err != nil {
		return err
	}
	if err := rpc.Ping(); err != nil {
		return err
	}
	fmt.Printf("speaks %s, version %d\n", client.Protocol(), client.NegotiatedVersion())
	return nil
}
