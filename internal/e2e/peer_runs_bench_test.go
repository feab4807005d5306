package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd"
)

// peers run workers as containers without a host.
type peers struct {
	*folders
	own     string // the folder of their own files
	image   string // a tar file of the root file system
	seccomp string // a file with the profile, as docker and podman take it
	mounts  int    // a process in a mount namespace where crun works
}

// peer is one way to run a container.
type peer struct {
	name        string
	open        func() // starts its server, if it has one, and gives it the image
	run, remove func(serial string) error
}

const peerImage = "dals-worker:bench"

func newPeers(b *testing.B, n int) *peers {
	b.Helper()
	own, err := os.MkdirTemp("", "dals-peers-") // podman refuses the longer path of b.TempDir
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(own); err != nil {
			b.Error(err)
		}
	})
	p := &peers{folders: newFolders(b, containerd.Crun, n+1), own: own}
	p.image, p.seccomp = filepath.Join(p.own, "image.tar"), filepath.Join(p.own, "seccomp.json")
	profile, err := json.Marshal(p.ociSpec(p.serials[0]).Linux.Seccomp)
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(p.seccomp, profile, 0o600), writeImage(p.image, p.binary())); err != nil {
		b.Fatal(err)
	}
	// crun refuses hybrid cgroups where it can see them.
	const hidden = "umount /sys/fs/cgroup/unified 2>&-; echo; exec sleep infinity"
	holder := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", hidden)
	said, err := holder.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.daemon(holder)
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	p.mounts = holder.Process.Pid
	b.Cleanup(func() { // crun leaves the groups that it was told of empty
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + p.namespace)
		for _, dir := range groups {
			if err := os.Remove(dir); err != nil {
				b.Error(err)
			}
		}
	})
	return p
}

// writeImage packs the worker binary into a tar file.
func writeImage(path, binary string) error {
	data, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = w.WriteHeader(&tar.Header{Name: "dals-worker", Mode: 0o755, Size: int64(len(data))})
	if err == nil {
		_, err = w.Write(data)
	}
	return errors.Join(err, w.Close(), os.WriteFile(path, b.Bytes(), 0o600))
}

// daemon starts a process that is ended with the benchmark.
func (p *peers) daemon(cmd *exec.Cmd) {
	p.b.Helper()
	if err := cmd.Start(); err != nil {
		p.b.Fatal(err)
	}
	p.b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

// served starts a server, and waits until ask succeeds.
func (p *peers) served(server *exec.Cmd, ask func() *exec.Cmd) {
	p.b.Helper()
	log, err := os.Create(filepath.Join(p.own, filepath.Base(server.Path)+".log"))
	if err != nil {
		p.b.Fatal(err)
	}
	defer log.Close()
	server.Stdout, server.Stderr = log, log
	p.daemon(server)
	for deadline := time.Now().Add(patience); ask().Run() != nil; {
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			p.b.Fatalf("%s does not answer\n%s", server.Path, said)
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
}

func (p *peers) must(cmd *exec.Cmd) {
	p.b.Helper()
	if err := do(cmd); err != nil {
		p.b.Fatal(err)
	}
}

// inMounts is a command in the mount namespace where crun works.
func (p *peers) inMounts(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--mount=/proc/" + strconv.Itoa(p.mounts) + "/ns/mnt"}, args...)...)
}

func (p *peers) all() []peer {
	return []peer{p.podman(), p.docker(), p.ctr(), p.crun()}
}

// cage are the flags that docker and podman share.
func (p *peers) cage(serial string, more ...string) []string {
	spec, folder := p.ociSpec(serial), p.folder(serial)
	r, user := spec.Linux.Resources, spec.Process.User
	memory := strconv.FormatInt(*r.Memory.Limit, 10)
	return slices.Concat([]string{
		"run", "--detach", "--name", serial, "--network", "none", "--read-only", "--cap-drop", "all",
		"--security-opt", "no-new-privileges", "--security-opt", "seccomp=" + p.seccomp,
		"--memory", memory, "--memory-swap", memory, "--pids-limit", strconv.FormatInt(*r.Pids.Limit, 10),
		"--cpu-quota", strconv.FormatInt(*r.CPU.Quota, 10), "--cpu-period", strconv.FormatUint(*r.CPU.Period, 10),
		"--user", fmt.Sprintf("%d:%d", user.UID, user.GID), "--tmpfs", "/tmp", "--env", launch.EnvDir + "=/worker",
		"--volume", folder + ":/worker:ro", "--volume", folder + "/state:/worker/state", "--volume", folder + "/run:/worker/run",
	}, more, []string{peerImage})
}

func (p *peers) podman() peer {
	dir := filepath.Join(p.own, "podman")
	command := func(args ...string) *exec.Cmd {
		return p.inMounts(append([]string{
			"podman", "--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp",
			"--cgroup-manager", "cgroupfs", "--runtime", "crun",
		}, args...)...)
	}
	return peer{
		name: "podman",
		open: func() { p.must(command("import", "--change", `ENTRYPOINT ["/dals-worker"]`, p.image, peerImage)) },
		run: func(serial string) error {
			// Its own limits are more than a root without CAP_SYS_RESOURCE can give.
			return do(command(p.cage(serial, "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")...))
		},
		remove: func(serial string) error { return do(command("rm", "--force", "--time", "0", serial)) },
	}
}

func (p *peers) docker() peer {
	dir := filepath.Join(p.own, "docker")
	command := func(args ...string) *exec.Cmd {
		return exec.Command("docker", append([]string{"--host", "unix://" + dir + ".sock"}, args...)...)
	}
	return peer{
		name: "docker",
		open: func() {
			p.served(exec.Command("dockerd", "--data-root", dir+"/root", "--exec-root", dir+"/exec", "--pidfile", dir+".pid",
				"--host", "unix://"+dir+".sock", "--iptables=false", "--bridge=none"),
				func() *exec.Cmd { return command("version") })
			p.must(command("import", "--change", `ENTRYPOINT ["/dals-worker"]`, p.image, peerImage))
		},
		run:    func(serial string) error { return do(command(p.cage(serial)...)) },
		remove: func(serial string) error { return do(command("rm", "--force", serial)) },
	}
}

// ctr takes the image from docker, which was opened before. As root with what it
// leaves to root a worker can read its files.
func (p *peers) ctr() peer {
	dir := filepath.Join(p.own, "ctr")
	command := func(args ...string) *exec.Cmd {
		return exec.Command("ctr", append([]string{"--address", dir + ".sock"}, args...)...)
	}
	const image = "docker.io/library/" + peerImage
	return peer{
		name: "ctr",
		open: func() {
			config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n", dir+"/root", dir+"/state", dir+".sock")
			if err := os.WriteFile(dir+".toml", []byte(config), 0o600); err != nil {
				p.b.Fatal(err)
			}
			p.served(exec.Command("containerd", "--config", dir+".toml"), func() *exec.Cmd { return command("version") })
			p.must(exec.Command("docker", "--host", "unix://"+filepath.Join(p.own, "docker.sock"), "save", "--output", dir+".tar", peerImage))
			p.must(command("image", "import", dir+".tar"))
		},
		run: func(serial string) error { return do(command(p.ctrRun(image, serial)...)) },
		remove: func(serial string) error {
			return errors.Join(do(command("task", "rm", "--force", serial)), do(command("container", "rm", serial)))
		},
	}
}

func (p *peers) ctrRun(image, serial string) []string {
	r, folder := p.ociSpec(serial).Linux.Resources, p.folder(serial)
	mount := func(from, to, mode string) string {
		return fmt.Sprintf("type=bind,src=%s,dst=%s,options=bind:%s", from, to, mode)
	}
	args := []string{
		"run", "--detach", "--read-only", "--seccomp", "--seccomp-profile", p.seccomp,
		"--memory-limit", strconv.FormatInt(*r.Memory.Limit, 10),
		"--cpu-quota", strconv.FormatInt(*r.CPU.Quota, 10), "--cpu-period", strconv.FormatUint(*r.CPU.Period, 10),
		"--env", launch.EnvDir + "=/worker", "--log-uri", "file://" + filepath.Join(folder, "logs", "worker.log"),
		"--mount", mount(folder, "/worker", "ro"), "--mount", mount(folder+"/state", "/worker/state", "rw"), "--mount", mount(folder+"/run", "/worker/run", "rw"),
	}
	for _, name := range []string{"CHOWN", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"} {
		args = append(args, "--cap-drop", "CAP_"+name)
	}
	return append(args, image, serial)
}

// crun runs bundles of the very specs.
func (p *peers) crun() peer {
	dir := filepath.Join(p.own, "crun")
	return peer{
		name: "crun",
		open: func() {
			for _, serial := range p.serials {
				bundle := filepath.Join(dir, serial)
				if err := errors.Join(os.MkdirAll(bundle, 0o700), os.Symlink(p.spec(serial), filepath.Join(bundle, "config.json"))); err != nil {
					p.b.Fatal(err)
				}
			}
		},
		run: func(serial string) error {
			log, err := os.OpenFile(filepath.Join(p.folder(serial), "logs", "worker.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			if err != nil {
				return err
			}
			defer log.Close()
			cmd := p.inMounts("crun", "--root", filepath.Join(p.own, "run"), "run", "--detach", "--bundle", filepath.Join(dir, serial), serial)
			cmd.Stdout, cmd.Stderr = log, log // what outlives the command has no pipe to it
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("crun run: %w: %s", err, tail(log.Name()))
			}
			return nil
		},
		remove: func(serial string) error {
			return do(p.inMounts("crun", "--root", filepath.Join(p.own, "run"), "delete", "--force", serial))
		},
	}
}

func tail(path string) string {
	const enough = 1000
	data, _ := os.ReadFile(path)
	return string(data[max(0, len(data)-enough):])
}
