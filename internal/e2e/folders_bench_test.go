package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// folders are what is left of forged workers when their host and its containerd
// have gone: their folders, the specs of their containers, and the root file
// system. Whoever runs a container by them gets a worker that answers.
type folders struct {
	b         *testing.B
	dir       string // the data folder
	specs     string // a spec for each serial
	serials   []string
	namespace string // of the cgroups that the specs name
	authority *identity.Authority
}

// newFolders forges n workers, whose containers run under an OCI runtime, and
// ends them.
func newFolders(b *testing.B, runtime string, n int) *folders {
	b.Helper()
	h := newContainerHost(b, runtime)
	atOnce(b, n, benchAtOnce, func(i int) error {
		_, err := h.client.Forge(b.Context(), client.ForgeRequest{Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1"})
		return err
	})
	workers, err := h.client.Workers(b.Context(), client.WorkerFilter{})
	if err != nil {
		b.Fatal(err)
	}
	f := h.copySpecs(workers)
	h.down()
	if err := os.CopyFS(f.dir, os.DirFS(f.specs)); err != nil {
		b.Fatal(err)
	}
	if err := chmodTree(filepath.Join(f.dir, "containerd", "rootfs")); err != nil {
		b.Fatal(err)
	}
	return f
}

func (h *host) copySpecs(workers []client.Worker) *folders {
	h.t.Helper()
	b := h.t.(*testing.B)
	keys, err := keyring.Open(keyring.Config{Dir: filepath.Join(h.dir, "keys")})
	if err != nil {
		b.Fatal(err)
	}
	authority, err := identity.NewAuthority(keys.HostID(), keys.CA().Private())
	if err != nil {
		b.Fatal(err)
	}
	f := &folders{b: b, dir: h.dir, specs: b.TempDir(), namespace: "dals-" + keys.HostID(), authority: authority}
	for _, w := range workers {
		f.serials = append(f.serials, w.WorkerSerial)
		bundle := filepath.Join(h.dir, "containerd", "state", "io.containerd.runtime.v2.task", f.namespace, w.WorkerSerial, "config.json")
		spec, err := os.ReadFile(bundle)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(f.spec(w.WorkerSerial), spec, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	// Down deletes the root file system with everything else of the launcher.
	if err := os.CopyFS(filepath.Join(f.specs, "containerd", "rootfs"), os.DirFS(filepath.Join(h.dir, "containerd", "rootfs"))); err != nil {
		b.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(h.dir, "containerd", "config.toml"))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.specs, "config.toml"), config, 0o600); err != nil {
		b.Fatal(err)
	}
	return f
}

func (f *folders) spec(serial string) string { return filepath.Join(f.specs, serial+".json") }

func chmodTree(root string) error {
	return filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := os.FileMode(0o755)
		if d.Name() == "tmp" {
			mode = 0o777 | os.ModeSticky
		}
		return os.Chmod(path, mode)
	})
}

// folder is a worker's own.
func (f *folders) folder(serial string) string {
	return filepath.Join(f.dir, "workers", "instances", serial)
}

// ociSpec is the spec of a worker's container.
func (f *folders) ociSpec(serial string) *specs.Spec {
	f.b.Helper()
	var spec specs.Spec
	data, err := os.ReadFile(f.spec(serial))
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	if err != nil {
		f.b.Fatal(err)
	}
	return &spec
}

// binary is the one that all of the workers run.
func (f *folders) binary() string {
	f.b.Helper()
	spec := f.ociSpec(f.serials[0])
	return filepath.Join(spec.Root.Path, spec.Process.Args[0])
}

// awaitHeartbeat returns when a worker that was started has answered.
func (f *folders) awaitHeartbeat(serial string) error {
	deadline := time.Now().Add(patience)
	for {
		err := f.heartbeat(serial, filepath.Join(f.folder(serial), "run", "worker.sock"))
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

// heartbeat asks for one, as the host does.
func (f *folders) heartbeat(serial, socket string) error {
	config, err := f.authority.HostTLS(serial)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+serial, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(f.b.Context(), patience)
	defer cancel()
	beats, err := workerv1.NewWorkerServiceClient(conn).Heartbeat(ctx)
	if err != nil {
		return err
	}
	if err := beats.Send(&workerv1.HeartbeatRequest{IntervalMs: 2000, Ping: 1}); err != nil {
		return err
	}
	beat, err := beats.Recv()
	if err == nil && !beat.GetVaultIntegrity() {
		err = errors.New(beat.GetVaultFault())
	}
	return err
}
