package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// operators is a containerd as an operator would have it, with all that it serves
// by default.
type operators struct {
	t       testing.TB
	within  []string // the command that runs it; none for itself
	dir     string
	address string
	cmd     *exec.Cmd
}

func newOperators(t testing.TB) *operators {
	t.Helper()
	return startOperators(t)
}

func startOperators(t testing.TB, within ...string) *operators {
	t.Helper()
	dir := t.TempDir()
	o := &operators{t: t, within: within, dir: dir, address: filepath.Join(dir, "c.sock")}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\n[grpc]\n  address = %q\n", dir+"/root", dir+"/state", o.address)
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	o.start()
	t.Cleanup(o.stop)
	return o
}

func (o *operators) start() {
	o.t.Helper()
	command := append(slices.Clone(o.within), "containerd", "--config", o.dir+"/config.toml")
	o.cmd = exec.Command(command[0], command[1:]...)
	if err := o.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	launchtest.Eventually(o.t, "the operator's containerd answers", func() bool { return o.try("version") == nil })
}

func (o *operators) stop() {
	o.t.Helper()
	if err := o.cmd.Process.Signal(unix.SIGTERM); err != nil {
		o.t.Error(err)
	}
	_ = o.cmd.Wait()
}

func (o *operators) try(args ...string) error {
	text, err := exec.Command("ctr", append([]string{"--address", o.address}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr %v: %w: %s", args, err, text)
	}
	return nil
}

// list is what ctr lists with --quiet.
func (o *operators) list(args ...string) []string {
	o.t.Helper()
	text, err := exec.Command("ctr", append([]string{"--address", o.address}, args...)...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("ctr %v: %v: %s", args, err, text)
	}
	return strings.Fields(string(text))
}

// TestContractShared holds the launcher to the contract under a containerd that
// somebody else runs, which has nothing of ours afterwards.
func TestContractShared(t *testing.T) {
	o := newOperators(t)
	t.Setenv(envAddress, o.address)
	t.Run("all", func(t *testing.T) { launchtest.Run(t, under(o.address)) })
	if left := o.list("namespaces", "list", "--quiet"); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	for _, dir := range []string{"state/" + taskFolder, "root/io.containerd.content.v1.content/blobs/sha256"} {
		if left, err := os.ReadDir(filepath.Join(o.dir, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

// TestSharedRestarts: workers run on while an operator's containerd is away, and
// what an earlier host has left unfinished is found after it.
func TestSharedRestarts(t *testing.T) {
	t.Parallel()
	o := newOperators(t)
	b := launchtest.NewBench(t, under(o.address))
	g := b.Guest()
	if left := launcher(b).leftovers(g.Spec.Serial); len(left) != 3 {
		t.Fatalf("a running worker has %v", left)
	}
	ended := make(chan launch.Exit, 1)
	go func() {
		exit, err := b.Launcher.Wait(b.Context(), g.Spec.Serial)
		if !errors.Is(err, worker.ErrUnavailable) { // as it is when the launcher is closed
			t.Error(err)
		}
		ended <- exit
	}()
	o.stop()
	g.Tell("ping")
	if _, err := b.Launcher.List(b.Context()); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("list while it is away: %v", err)
	}
	old := b.Launcher
	if _, err := under("")(b.Config); !errors.Is(err, worker.ErrUnavailable) || worker.HintOf(err) == "" {
		t.Errorf("opened while it is away: %v (hint %q)", err, worker.HintOf(err))
	}
	o.start()
	launchtest.Eventually(t, "the worker is found", func() bool {
		list, err := b.Launcher.List(b.Context())
		return err == nil && len(list) == 1 && list[0].Running
	})
	select {
	case exit := <-ended:
		t.Fatalf("a lost containerd was taken for the worker's end: %+v", exit)
	default:
	}
	b.Reopen()
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	<-ended
	if state := launcher(b).site.stateDir(); state != o.dir+"/state" {
		t.Errorf("its state is taken to be in %q", state)
	}
	g.Tell("ping")
	b.Stop(g.Spec.Serial, time.Second)
	g.ExpectProcesses(0)
	if left := launcher(b).leftovers(g.Spec.Serial); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSharedShimDies: what is left of it is found and deleted in the operator's
// containerd, too.
func TestSharedShimDies(t *testing.T) {
	t.Parallel()
	o := newOperators(t)
	b := launchtest.NewBench(t, under(o.address))
	g := b.Guest()
	shims, err := launcher(b).site.shims(string(g.Spec.Serial))
	if err != nil || len(shims) != 1 {
		t.Fatalf("%d shims, %v", len(shims), err)
	}
	kill(t, shims[0].Identity().PID)
	_ = shims[0].Close()
	b.Wait(g.Spec.Serial)
	b.Stop(g.Spec.Serial, time.Second)
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); err != nil {
		t.Fatal(err)
	}
	g.AwaitUp()
	g.ExpectProcesses(1)
}

// TestSharedDown: of an operator's containerd only the host's namespace goes, and
// not even that while something of another's is in it.
func TestSharedDown(t *testing.T) {
	t.Parallel()
	o := newOperators(t)
	b := launchtest.NewBench(t, under(o.address))
	b.Guest()
	if err := o.try("containers", "create", "--rootfs", t.TempDir(), "theirs", "/program"); err != nil {
		t.Fatal(err)
	}
	own := namespace(b.Config.HostID)
	if err := o.try("--namespace", own, "snapshots", "prepare", "misplaced"); err != nil {
		t.Fatal(err)
	}
	b.Clean()
	if err := o.try("version"); err != nil {
		t.Errorf("it does not run any more: %v", err)
	}
	if theirs := o.list("containers", "list", "--quiet"); !slices.Equal(theirs, []string{"theirs"}) {
		t.Errorf("its containers: %v", theirs)
	}
	if all := o.list("namespaces", "list", "--quiet"); !slices.Contains(all, own) || !slices.Contains(all, "default") {
		t.Errorf("its namespaces: %v", all)
	}
	for _, kind := range []string{"containers", "images"} {
		if left := o.list("--namespace", own, kind, "list", "--quiet"); len(left) > 0 {
			t.Errorf("%s left: %v", kind, left)
		}
	}
	if err := o.try("--namespace", own, "snapshots", "remove", "misplaced"); err != nil {
		t.Error(err)
	}
	b.Reopen() // for the bench's own end
}

// TestOneContainerd: workers are never looked for under another containerd than
// theirs.
func TestOneContainerd(t *testing.T) {
	t.Parallel()
	o, other := newOperators(t), newOperators(t)
	b := launchtest.NewBench(t, under("unix://"+o.address))
	g := b.Guest()
	refused := func(address, wantHint string) {
		t.Helper()
		if _, err := under(address)(b.Config); !errors.Is(err, worker.ErrConflict) || !strings.Contains(worker.HintOf(err), wantHint) {
			t.Errorf("opened under %s: %v (hint %q)", address, err, worker.HintOf(err))
		}
	}
	refused(Private, "use --containerd "+o.address)
	refused(other.address, "use that one")
	again, err := under("")(b.Config) // what was used before
	if err != nil {
		t.Fatal(err)
	}
	if list, err := again.List(b.Context()); err != nil || len(list) != 1 || list[0].Serial != g.Spec.Serial {
		t.Errorf("by itself it has %+v, %v", list, err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	g.Tell("ping")

	p := launchtest.NewBench(t, open)
	if _, err := under(o.address)(p.Config); !errors.Is(err, worker.ErrConflict) || !strings.Contains(worker.HintOf(err), "--containerd private") {
		t.Errorf("opened beside a private one: %v (hint %q)", err, worker.HintOf(err))
	}
	if all := o.list("namespaces", "list", "--quiet"); slices.Contains(all, namespace(p.Config.HostID)) {
		t.Errorf("a launcher that was refused has left its namespace: %v", all)
	}
}

// TestSharedRefused: what cannot be worked with is said, and no mark is left.
func TestSharedRefused(t *testing.T) {
	t.Parallel()
	b := launchtest.NewFolder(t, open)
	dir := t.TempDir()
	old := oldContainerd(t, filepath.Join(dir, "old.sock"))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hybrid, err := isHybrid()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, address, runtime string
		family                 error
		says, hint             string
		skip                   bool
	}{
		{"old", old, "", worker.ErrUnavailable, "version 1.4.13~ds1 is too old, at least 1.6.0 is needed", "install containerd 1.6.0 or later", false},
		{"nobody", filepath.Join(dir, "none.sock"), "", worker.ErrUnavailable, "no such file", "start it", false},
		{"no socket", file, "", worker.ErrUnavailable, "connection refused", "start it", false},
		{"relative", "run/c.sock", "", worker.ErrInvalid, "run/c.sock", "absolute path", false},
		{"crun on a hybrid", old, Crun, worker.ErrUnavailable, "cgroups of both versions", "--runtime runc", !hybrid},
	} {
		if test.skip {
			continue
		}
		_, err := New(t.Context(), Config{DataDir: b.Config.DataDir, HostID: b.Config.HostID, Address: test.address, Runtime: test.runtime, Logger: b.Config.Logger})
		if !errors.Is(err, test.family) || !strings.Contains(err.Error(), test.says) || !strings.Contains(worker.HintOf(err), test.hint) {
			t.Errorf("%s: %v (hint %q)", test.name, err, worker.HintOf(err))
		}
	}
	if _, err := os.Lstat(filepath.Join(b.Config.DataDir, "containerd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder is left: %v", err)
	}
}

// oldContainerd answers as a containerd would that is too old.
func oldContainerd(t *testing.T, address string) string {
	t.Helper()
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	versionapi.RegisterVersionServer(server, old{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return address
}

type old struct {
	versionapi.UnimplementedVersionServer
}

func (old) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "1.4.13~ds1"}, nil
}

// TestPeer: who listens must be root's and see the data folder.
func TestPeer(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "c.sock")
	if err := errors.Join(os.Chmod(filepath.Dir(address), 0o777), os.Chmod(filepath.Dir(filepath.Dir(address)), 0o755)); err != nil {
		t.Fatal(err)
	}
	listening := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and never unlocked: its uid goes with it
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			t.Error(errno)
		}
		l, err := net.Listen("unix", address)
		if err != nil {
			t.Error(err)
		}
		listening <- l
	}()
	l := <-listening
	if l == nil {
		t.FailNow()
	}
	defer l.Close()
	if _, err := checkPeer(address, t.TempDir()); !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), "runs as uid 65534") {
		t.Errorf("one of nobody's: %v", err)
	}
	hidden := t.TempDir()
	o := startOperators(t, "unshare", "--mount", "sh", "-c", `mount -t tmpfs none "$0" && exec "$@"`, hidden)
	if _, err := checkPeer(o.address, hidden); !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), "does not see the data folder") {
		t.Errorf("one with other files: %v", err)
	}
	if bound, err := checkPeer(o.address, t.TempDir()); err != nil || bound != o.address {
		t.Errorf("a good one: %q, %v", bound, err)
	}
	link := filepath.Join(t.TempDir(), "link.sock")
	if err := os.Symlink(o.address, link); err != nil {
		t.Fatal(err)
	}
	if bound, err := checkPeer(link, t.TempDir()); err != nil || bound != o.address {
		t.Errorf("by another name: %q, %v", bound, err)
	}
}

// TestMark: one that cannot be read is not taken for none.
func TestMark(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if m, err := readMark(dir); err != nil || m != (mark{}) {
		t.Errorf("mark of an empty folder: %+v, %v", m, err)
	}
	if err := os.WriteFile(markFile(dir), []byte("no mark"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := readMark(dir); err == nil {
		t.Errorf("a damaged mark is read as %+v", m)
	}
}
