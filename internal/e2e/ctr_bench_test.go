package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// ctrBench runs a data folder's containers by ctr.
type ctrBench struct {
	b         *testing.B
	dir       string // the data folder
	specs     string // a spec for each serial
	serials   []string
	runtime   string
	namespace string
	authority *identity.Authority
}

// newCtrBench forges workers, one more than are measured, and keeps their
// folders and the specs of their containers, to be run under an OCI runtime.
func newCtrBench(b *testing.B, runtime string) *ctrBench {
	b.Helper()
	h := newContainerHost(b, runtime)
	atOnce(b, benchWorkers+1, func(i int) error {
		_, err := h.client.Forge(b.Context(), client.ForgeRequest{Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1"})
		return err
	})
	workers, err := h.client.Workers(b.Context(), client.WorkerFilter{})
	if err != nil {
		b.Fatal(err)
	}
	c := h.copySpecs(workers)
	c.runtime = runtime
	h.down()
	if err := os.CopyFS(c.dir, os.DirFS(c.specs)); err != nil {
		b.Fatal(err)
	}
	if err := chmodTree(filepath.Join(c.dir, "containerd", "rootfs")); err != nil {
		b.Fatal(err)
	}
	return c
}

func (h *host) copySpecs(workers []client.Worker) *ctrBench {
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
	c := &ctrBench{b: b, dir: h.dir, specs: b.TempDir(), namespace: "dals-" + keys.HostID(), authority: authority}
	for _, w := range workers {
		c.serials = append(c.serials, w.WorkerSerial)
		bundle := filepath.Join(h.dir, "containerd", "state", "io.containerd.runtime.v2.task", c.namespace, w.WorkerSerial, "config.json")
		spec, err := os.ReadFile(bundle)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(c.spec(w.WorkerSerial), spec, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	// Down deletes the root file system with everything else of the launcher.
	if err := os.CopyFS(filepath.Join(c.specs, "containerd", "rootfs"), os.DirFS(filepath.Join(h.dir, "containerd", "rootfs"))); err != nil {
		b.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(h.dir, "containerd", "config.toml"))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.specs, "config.toml"), config, 0o600); err != nil {
		b.Fatal(err)
	}
	return c
}

func (c *ctrBench) spec(serial string) string { return filepath.Join(c.specs, serial+".json") }

// runAll runs all containers and removes them.
func (c *ctrBench) runAll() cost {
	c.b.Helper()
	stop := c.start()
	defer stop()
	warm, measured := c.serials[0], c.serials[1:]
	if err := c.run(warm); err != nil {
		c.b.Fatal(err)
	}
	spent := measure(c.b, func(i int) error { return c.run(measured[i]) })
	for _, serial := range c.serials {
		c.remove(serial)
	}
	return spent
}

// start runs a containerd with the configuration of the host's own.
func (c *ctrBench) start() (stop func()) {
	c.b.Helper()
	// crun refuses hybrid cgroups where it can see them; our own hides them as well.
	const hidden = `umount /sys/fs/cgroup/unified 2>&-; exec "$0" "$@"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", hidden,
		"containerd", "--config", filepath.Join(c.specs, "config.toml"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		c.b.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for exec.Command("ctr", c.args("version")...).Run() != nil {
		if time.Now().After(deadline) {
			c.b.Fatalf("containerd does not answer\n%s", &log)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		c.sweep()
	}
}

// sweep removes what ctr and containerd leave, and our launcher does not: empty
// cgroups and runc's folder.
func (c *ctrBench) sweep() {
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.namespace)
	for _, dir := range append(groups, filepath.Join("/run/containerd/runc", c.namespace)) {
		if err := os.Remove(dir); err != nil {
			c.b.Error(err)
		}
	}
}

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

func (c *ctrBench) args(more ...string) []string {
	return append([]string{"--address", filepath.Join(c.dir, "containerd", "containerd.sock"), "--namespace", c.namespace}, more...)
}

// run starts one container and waits for its first heartbeat.
func (c *ctrBench) run(serial string) error {
	folder := filepath.Join(c.dir, "workers", "instances", serial)
	_ = os.Remove(filepath.Join(folder, "run", "worker.sock"))
	log := "file://" + filepath.Join(folder, "logs", "worker.log")
	args := c.args("run", "--detach", "--log-uri", log, "--runc-binary", c.runtime, "--config", c.spec(serial), serial)
	if text, err := exec.Command("ctr", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr run: %w: %s", err, text)
	}
	deadline := time.Now().Add(patience)
	for {
		err := c.heartbeat(serial, filepath.Join(folder, "run", "worker.sock"))
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

// heartbeat asks for one, as the host does.
func (c *ctrBench) heartbeat(serial, socket string) error {
	config, err := c.authority.HostTLS(serial)
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
	ctx, cancel := context.WithTimeout(c.b.Context(), patience)
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

func (c *ctrBench) remove(serial string) {
	_ = exec.Command("ctr", c.args("task", "kill", "--signal", "SIGKILL", serial)...).Run()
	deadline := time.Now().Add(patience)
	for exec.Command("ctr", c.args("task", "delete", serial)...).Run() != nil && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond) // it is dying
	}
	if text, err := exec.Command("ctr", c.args("container", "delete", serial)...).CombinedOutput(); err != nil {
		c.b.Errorf("ctr container delete: %v: %s", err, text)
	}
}
