package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
)

// patience is how long anything may take here before a test gives up.
const patience = time.Minute

// bin is where TestMain builds the real binaries.
var bin string

// web keeps no connection: a test server that is closed ends all that the default client
// keeps, also while another test is about to use it.
var web = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "dals-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	if err := os.Chmod(dir, 0o755); err != nil { // for hosts that are not root
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for out, pkg := range map[string]string{
		"dals-host": "cmd/dals-host", shim.Binary: "cmd/" + shim.Binary, "dals-worker-template": "plugins/template",
		"dals-worker-ledger": "plugins/ledger", "dals-worker-rogue": "internal/e2e/rogue",
	} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, out), "github.com/dals-host/dals-host/"+pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, text)
			return 1
		}
	}
	return m.Run()
}

// launchers runs a test under each launcher, on a host of its own.
func launchers(t *testing.T, test func(t *testing.T, h *host)) {
	for _, launcher := range []string{"process", "containerd"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			test(t, newHost(t, launcher))
		})
	}
}

// host is a real dals-host process on a data folder of its own.
type host struct {
	t        testing.TB
	launcher string
	binary   string   // empty for the usual one
	flags    []string // of serve
	in       string   // where the data folder is made; empty for the usual place
	uid      uint32   // that the host runs as; 0 is root
	dir      string
	cmd      *exec.Cmd
	id       string
	extra    []*os.File // what the host inherits of its parent
	env      []string   // beside the test's own
	log      *lockedBuffer
	client   *client.Client
}

// newHost starts a host with the plugins dropped into it. When the test ends it
// is taken down, and nothing of it may be left.
func newHost(t testing.TB, launcher string) *host {
	t.Helper()
	h := &host{t: t, launcher: launcher}
	h.setup()
	return h
}

func (h *host) setup() {
	h.t.Helper()
	// Not t.TempDir: its removal would hide what down leaves behind.
	dir, err := os.MkdirTemp(h.in, "dals-e2e-data-")
	if err != nil {
		h.t.Fatal(err)
	}
	if h.uid != 0 {
		if err := os.Chown(dir, int(h.uid), int(h.uid)); err != nil {
			h.t.Fatal(err)
		}
	}
	h.dir, h.log = dir, &lockedBuffer{}
	h.t.Cleanup(h.clean)
	h.start()
	for _, typ := range []string{"template", "ledger", "rogue"} {
		h.drop("dals-worker-" + typ)
	}
	h.eventually("all types registered", func() error {
		types, err := h.client.Types(h.t.Context())
		if err == nil && len(types) < 3 {
			plugins, _ := h.client.Plugins(h.t.Context())
			err = fmt.Errorf("%d types; plugins %+v", len(types), plugins)
		}
		return err
	})
}

func (h *host) start() {
	h.t.Helper()
	args := append([]string{"--data-dir", h.dir, "--log-level", "debug", "serve", "--launcher", h.launcher}, h.flags...)
	h.cmd = exec.Command(cmp.Or(h.binary, filepath.Join(bin, "dals-host")), args...)
	h.cmd.Stderr, h.cmd.ExtraFiles = h.log, h.extra
	h.cmd.Env = append(os.Environ(), h.env...)
	h.cmd.SysProcAttr = h.attributes()
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
	}()
	select {
	case text := <-line:
		if !strings.HasPrefix(text, "ready") {
			h.t.Fatalf("host said %q\n%s", text, h.log)
		}
	case <-time.After(patience):
		h.t.Fatalf("host not ready\n%s", h.log)
	}
	if h.client != nil {
		return
	}
	h.client = h.dial(h.operator())
	status, err := h.client.Status(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	h.id = status.HostID
}

// attributes make a process run as the host does.
func (h *host) attributes() *syscall.SysProcAttr {
	if h.uid == 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: h.uid, Gid: h.uid}}
}

func (h *host) operator() ed25519.PrivateKey {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.dir, "keys", "operator.key"))
	if err != nil {
		h.t.Fatal(err)
	}
	key, err := identity.ParseKey(data)
	if err != nil {
		h.t.Fatal(err)
	}
	return key
}

func (h *host) dial(key ed25519.PrivateKey) *client.Client {
	h.t.Helper()
	c, err := client.Dial(h.t.Context(), client.Config{Host: filepath.Join(h.dir, "host.sock"), Key: key})
	if err != nil {
		h.t.Fatalf("dial host: %v\n%s", err, h.log)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

// kill ends the host as a power cut would end it.
func (h *host) kill() {
	h.t.Helper()
	if err := h.cmd.Process.Kill(); err != nil {
		h.t.Fatal(err)
	}
	_ = h.cmd.Wait()
}

// drop copies a plugin into the plugins folder of the running host.
func (h *host) drop(name string) {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(bin, name))
	if err != nil {
		h.t.Fatal(err)
	}
	path := filepath.Join(h.dir, "plugins", name)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if h.uid != 0 { // trusted is what belongs to the host's user
		if err := os.Chown(path, int(h.uid), int(h.uid)); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *host) forge(name, typ string) client.Worker {
	h.t.Helper()
	made, err := h.client.Forge(h.t.Context(), client.ForgeRequest{Name: name, Type: typ, ClassCode: "A1"})
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.log)
	}
	if !made.VaultIntegrity || made.State != "live" || made.Launcher != h.launcher {
		h.t.Fatalf("forged %+v", made.Worker)
	}
	return made.Worker
}

func (h *host) send(worker, kind string, in any) (client.Result, error) {
	h.t.Helper()
	return h.client.Send(h.t.Context(), client.SendRequest{Worker: worker, Kind: kind, Input: in})
}

func (h *host) mustSend(worker, kind string, in any) client.Result {
	h.t.Helper()
	result, err := h.send(worker, kind, in)
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.log)
	}
	return result
}

func (h *host) worker(ref string) client.Worker {
	h.t.Helper()
	w, err := h.client.Worker(h.t.Context(), ref)
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.log)
	}
	return w.Worker
}

// run runs the command line tool on this host and gives what it printed.
func (h *host) run(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "dals-host"), append([]string{"--data-dir", h.dir}, args...)...)
	cmd.SysProcAttr = h.attributes()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// entries reads the record from the data folder.
func (h *host) entries() []record.Entry {
	h.t.Helper()
	r, err := registry.OpenReadOnly(context.Background(), filepath.Join(h.dir, "registry.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	var entries []record.Entry
	next := uint64(0)
	for g, err := range r.Groups(context.Background(), 0) {
		if err != nil {
			h.t.Fatal(err)
		}
		if g.First != next {
			h.t.Fatalf("the log is not dense: group at %d, want %d", g.First, next)
		}
		for _, line := range g.Entries {
			e, err := record.Decode(line)
			if err != nil {
				h.t.Fatal(err)
			}
			entries = append(entries, e)
			next++
		}
	}
	return entries
}

// count counts the entries that fit.
func (h *host) count(fits func(record.Entry) bool) (n int) {
	for _, e := range h.entries() {
		if fits(e) {
			n++
		}
	}
	return n
}

func (h *host) eventually(what string, check func() error) {
	h.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: %v\n%s", what, err, h.log)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// pids are the processes of a worker, by its binary's arguments or its cgroup.
func (h *host) pids(serial string) (pids []int) {
	h.t.Helper()
	for pid, text := range processes() {
		if strings.Contains(text, serial) && !strings.Contains(text, "containerd-shim") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes maps each process to its arguments, its cgroups and whether it is a
// zombie.
func processes() map[int]string {
	all := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		stat, _ := os.ReadFile(dir + "/stat")
		if i := bytes.LastIndexByte(stat, ')'); i < 0 || bytes.HasPrefix(stat[i:], []byte(") Z")) {
			continue
		}
		args, _ := os.ReadFile(dir + "/cmdline")
		groups, _ := os.ReadFile(dir + "/cgroup")
		all[pid] = string(args) + string(groups)
	}
	return all
}

// down ends host and workers, if that has not been done.
func (h *host) down() {
	h.t.Helper()
	if h.cmd.ProcessState != nil {
		return
	}
	if _, stderr, code := h.run("down", "--timeout", "2s"); code != 0 {
		h.t.Errorf("down: exit %d: %s\n%s", code, stderr, h.log)
		h.kill()
	} else if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("host after down: %v\n%s", err, h.log)
	}
}

// clean takes the host down and looks for leftovers.
func (h *host) clean() {
	h.t.Helper()
	if h.t.Failed() {
		h.t.Logf("host log:\n%s", h.log)
	}
	h.down()
	for pid, text := range processes() {
		if strings.Contains(text, h.dir) || strings.Contains(text, h.id) {
			h.t.Errorf("process %d left: %q", pid, text)
		}
	}
	if mounts, _ := os.ReadFile("/proc/mounts"); bytes.Contains(mounts, []byte(h.dir)) || bytes.Contains(mounts, []byte(h.id)) {
		h.t.Errorf("mounts left:\n%s", mounts)
	}
	for _, root := range []string{"/sys/fs/cgroup", "/run", "/dev/shm"} {
		_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.Contains(filepath.Base(path), h.id) {
				h.t.Errorf("left: %s", path)
			}
			return nil
		})
	}
	if sockets, _ := os.ReadFile("/proc/net/unix"); bytes.Contains(sockets, []byte(h.dir)) {
		h.t.Error("sockets left in the data folder")
	}
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Errorf("remove data folder: %v", err)
	}
}

func (h *host) signal(serial string, s syscall.Signal) {
	h.t.Helper()
	pids := h.pids(serial)
	if len(pids) == 0 {
		h.t.Fatalf("no process of %s", serial)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, s); err != nil {
			h.t.Fatal(err)
		}
	}
}

// lockedBuffer takes the host's log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
