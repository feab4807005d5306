package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// ctrBench runs the containers of folders by ctr, from the very specs.
type ctrBench struct {
	*folders
	runtime string
}

// newCtrBench forges workers, one more than are measured.
func newCtrBench(b *testing.B, runtime string) *ctrBench {
	b.Helper()
	return &ctrBench{newFolders(b, runtime, benchWorkers+1), runtime}
}

// runAll runs all containers and removes them.
func (c *ctrBench) runAll() cost {
	c.b.Helper()
	stop := c.start()
	defer stop()
	warm, measured := c.serials[0], c.serials[1:]
	if err := c.run(warm); err != nil {
		c.b.Fatal(err)
	}
	spent := measure(c.b, benchWorkers, benchAtOnce, func(i int) error { return c.run(measured[i]) })
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

func (c *ctrBench) args(more ...string) []string {
	return append([]string{"--address", filepath.Join(c.dir, "containerd", "containerd.sock"), "--namespace", c.namespace}, more...)
}

// run starts one container and waits for its first heartbeat.
func (c *ctrBench) run(serial string) error {
	folder := c.folder(serial)
	_ = os.Remove(filepath.Join(folder, "run", "worker.sock"))
	log := "file://" + filepath.Join(folder, "logs", "worker.log")
	args := c.args("run", "--detach", "--log-uri", log, "--runc-binary", c.runtime, "--config", c.spec(serial), serial)
	if text, err := exec.Command("ctr", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr run: %w: %s", err, text)
	}
	return c.awaitHeartbeat(serial)
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
