package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

func launcher(b *launchtest.Bench) *Launcher { return b.Launcher.(*Launcher) }

// own is the bench's private containerd.
func own(b *launchtest.Bench) *private { return launcher(b).daemon.(*private) }

// containerdPID is the one containerd of the bench.
func containerdPID(t *testing.T, b *launchtest.Bench) int {
	t.Helper()
	found, err := own(b).find()
	if err != nil || len(found) != 1 {
		t.Fatalf("%d containerds, %v", len(found), err)
	}
	defer found[0].Close()
	return found[0].Identity().PID
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestContainerdDies: workers run on, waiters keep waiting, and containerd is
// started again.
func TestContainerdDies(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	ended := make(chan launch.Exit, 1)
	go func() {
		exit, err := b.Launcher.Wait(b.Context(), g.Spec.Serial)
		if err != nil {
			t.Error(err)
		}
		ended <- exit
	}()
	first := containerdPID(t, b)
	logFile := own(b).logFile()
	const trace = "goroutine 1 [running]\n"
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = log.WriteString(trace)
		err = errors.Join(err, log.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	kill(t, first)
	g.Tell("ping")
	launchtest.Eventually(t, "containerd is back", func() bool {
		list, err := b.Launcher.List(b.Context())
		return err == nil && len(list) == 1 && list[0].Running
	})
	if now := containerdPID(t, b); now == first {
		t.Fatal("the dead containerd is said to run")
	}
	if text, err := os.ReadFile(logFile); err != nil || !strings.Contains(string(text), trace) {
		t.Errorf("what the last containerd said is gone: %d bytes, %v", len(text), err)
	}
	select {
	case exit := <-ended:
		t.Fatalf("a lost containerd was taken for the worker's end: %+v", exit)
	default:
	}
	g.Provoke("exit 6")
	if exit := <-ended; exit.Code != 6 || exit.Unknown {
		t.Fatalf("its end is %+v", exit)
	}
}

// TestOnlyWhatIsNeeded: containerd runs nothing that speaks to others or that no worker
// needs.
func TestOnlyWhatIsNeeded(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	said, err := launcher(b).client.IntrospectionService().Plugins(b.Context())
	if err != nil {
		t.Fatal(err)
	}
	needless := []string{"cri", "nri", "restart", "opt", "otlp", "tracing", "image-verifier", "transfer-cri", "stream-cri"}
	var snapshotters, runs []string
	for _, p := range said.Plugins {
		if p.InitErr != nil {
			continue
		}
		runs = append(runs, p.Type+"."+p.ID)
		kind := strings.TrimPrefix(p.Type, "io.containerd.")
		if kind == "snapshotter.v1" {
			snapshotters = append(snapshotters, p.ID)
		}
		if slices.ContainsFunc(needless, func(name string) bool {
			return p.ID == name || strings.HasPrefix(kind, name+".") || strings.Contains(kind, ".cri.")
		}) {
			t.Errorf("%s %s runs", p.Type, p.ID)
		}
	}
	if !slices.Equal(snapshotters, []string{"native"}) {
		t.Errorf("snapshotters %v", snapshotters)
	}
	if !slices.Contains(runs, "io.containerd.grpc.v1.tasks") {
		t.Errorf("what runs is %v", runs)
	}
}

// TestWorkerDiesWithContainerdAway: the shim has kept the exit code.
func TestWorkerDiesWithContainerdAway(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	pid := containerdPID(t, b)
	if err := b.Launcher.Close(); err != nil { // nobody starts it again
		t.Fatal(err)
	}
	kill(t, pid)
	g.Provoke("exit 8")
	launchtest.Eventually(t, "the worker has ended", func() bool { return len(g.Processes()) == 0 })
	b.Reopen()
	if exit := b.Wait(g.Spec.Serial); !exit.Unknown && exit.Code != 8 {
		t.Fatalf("its end is %+v", exit)
	}
	b.Stop(g.Spec.Serial, 0)
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); err != nil {
		t.Fatal(err)
	}
	g.AwaitUp()
}

// TestShimDies: the worker's end is seen, its exit is unknown or a kill, and it
// can be started again.
func TestShimDies(t *testing.T) { shims(t, shimDies) }

func shimDies(t *testing.T, open launchtest.Open) {
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	shims, err := own(b).shims("")
	if err != nil || len(shims) != 1 {
		t.Fatalf("%d shims, %v", len(shims), err)
	}
	kill(t, shims[0].Identity().PID)
	_ = shims[0].Close()
	if exit := b.Wait(g.Spec.Serial); !exit.Unknown && exit.Signal != "SIGKILL" {
		t.Fatalf("its end is %+v", exit)
	}
	g.ExpectProcesses(0)
	b.Stop(g.Spec.Serial, time.Second)
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); err != nil {
		t.Fatal(err)
	}
	g.AwaitUp()
	g.ExpectProcesses(1)
}

// TestDeleteCutShort: containerd forgets a task and leaves its shim when a host
// dies while it waits for the deletion. The next one is told of it.
func TestDeleteCutShort(t *testing.T) { shims(t, deleteCutShort) }

func deleteCutShort(t *testing.T, open launchtest.Open) {
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	serial := g.Spec.Serial
	for patience := time.Duration(0); !cutShort(t, b, serial, patience); patience += 500 * time.Microsecond {
		b.Stop(serial, 0)
		if err := b.Launcher.Start(b.Context(), serial); err != nil {
			t.Fatal(err)
		}
		g.AwaitUp()
	}
	if s, ok := b.Status(serial); !ok || s.Running || !s.Unsettled {
		t.Errorf("a worker whose shim is left is %+v", s)
	}
	b.Stop(serial, 0)
	if shims, err := own(b).shims(string(serial)); err != nil || len(shims) != 0 {
		t.Errorf("%d shims are left, %v", len(shims), err)
	}
	if s, ok := b.Status(serial); !ok || s.Unsettled {
		t.Errorf("a settled worker is %+v", s)
	}
}

// cutShort leaves the deletion of a killed worker's task after some time, and says
// whether the task has gone and the shim has not.
func cutShort(t *testing.T, b *launchtest.Bench, serial worker.Serial, patience time.Duration) bool {
	t.Helper()
	if patience > 200*time.Millisecond {
		t.Fatal("no shim was left, whenever the deletion was cut short")
	}
	l := launcher(b)
	if err := l.kill(b.Context(), serial); err != nil {
		t.Fatal(err)
	}
	if _, err := l.await(b.Context(), serial); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(b.Context())
	defer cancel()
	defer time.AfterFunc(patience, cancel).Stop()
	if _, err := l.client.TaskService().Delete(impatient, &tasks.DeleteTaskRequest{ContainerID: string(serial)}); err == nil {
		return false
	}
	time.Sleep(100 * time.Millisecond) // for what still goes on
	_, err := l.task(b.Context(), serial)
	return errors.Is(err, worker.ErrNotFound) && len(l.leftovers(serial)) > 0
}

// TestRemoveLeavesNoShim: a shim's socket lies outside of the data folder.
func TestRemoveLeavesNoShim(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	if left := launcher(b).leftovers(g.Spec.Serial); len(left) != 3 {
		t.Fatalf("a running worker has %v", left)
	}
	b.Remove(g.Spec.Serial)
	if left := launcher(b).leftovers(g.Spec.Serial); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	launchtest.Eventually(t, "the shim has nothing to do and ends", func() bool {
		shims, err := own(b).shims("")
		return err == nil && len(shims) == 0
	})
	for _, root := range []string{"/run/containerd/runc", "/run/runc", "/run/crun"} {
		for _, name := range []string{own(b).namespace, string(g.Spec.Serial)} {
			if _, err := os.Stat(filepath.Join(root, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("state is kept outside of the data folder: %s, %v", filepath.Join(root, name), err)
			}
		}
	}
}

// TestLongPath: the socket moves out of a data folder that is too deep for it,
// and only then.
func TestLongPath(t *testing.T) {
	t.Parallel()
	for _, beyond := range []int{0, 1, 100} {
		t.Run(strconv.Itoa(beyond), func(t *testing.T) {
			t.Parallel()
			b := launchtest.NewFolder(t, open)
			parent := b.Config.DataDir
			name := maxSocket + beyond - len(parent+"/"+"/containerd/containerd.sock")
			if name < 1 {
				t.Fatalf("%s is too long for this test", parent)
			}
			b.Config.DataDir = filepath.Join(parent, strings.Repeat("d", name))
			if err := os.MkdirAll(b.Config.DataDir, 0o700); err != nil {
				t.Fatal(err)
			}
			b.Reopen()
			t.Cleanup(b.Clean)
			if address := own(b).address; strings.HasPrefix(address, "/run/dals-") != (beyond > 0) {
				t.Fatalf("the socket is %s", address)
			}
			b.Guest()
		})
	}
}

// TestPaths: containerd works in a folder with any other name, and says no early
// where it cannot.
func TestPaths(t *testing.T) {
	t.Parallel()
	b := launchtest.NewFolder(t, open)
	parent := b.Config.DataDir
	for _, name := range []string{"a%b", "a%20b", "a?b", "a#b", "a:b", "a\nb", "a\x7fb", "a\xffb"} {
		b.Config.DataDir = filepath.Join(parent, name)
		if _, err := open(b.Config); !errors.Is(err, worker.ErrInvalid) || worker.HintOf(err) == "" {
			t.Errorf("%q: %v (hint %q)", name, err, worker.HintOf(err))
		}
		if _, err := os.Lstat(b.Config.DataDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q was made: %v", name, err)
		}
	}
	b.Config.DataDir = filepath.Join(parent, `a b&c=d;e"f'g\hi@j+k,l*[m]é`)
	if err := os.MkdirAll(b.Config.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.Reopen()
	t.Cleanup(b.Clean)
	g := b.Guest()
	g.Tell("flood 4096")
	launchtest.Eventually(t, "the log holds it", func() bool { return len(b.LogText(g.Spec)) >= 4096 })
	spec := b.Spec()
	spec.Dir += "%"
	if err := b.Launcher.Create(b.Context(), spec); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("created a worker in %s: %v", spec.Dir, err)
	}
}

// TestAfterBoot: what containerd knew of tasks before a boot is forgotten.
func TestAfterBoot(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	spec := b.Spec()
	if err := b.Launcher.Create(b.Context(), spec); err != nil {
		t.Fatal(err)
	}
	p := own(b)
	if err := os.WriteFile(filepath.Join(p.dir, "boot"), []byte("earlier"), 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(p.runcRoot(), p.namespace, string(spec.Serial))
	if err := os.MkdirAll(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	kill(t, containerdPID(t, b))
	launchtest.Eventually(t, "containerd is back", func() bool {
		_, err := b.Launcher.List(b.Context())
		return err == nil && len(launcher(b).leftovers(spec.Serial)) == 0
	})
	if err := b.Launcher.Start(b.Context(), spec.Serial); err != nil {
		t.Fatal(err)
	}
}

// TestNoBoot: a lost or wrong boot id does not make the launcher forget workers
// that run, with containerd running or not.
func TestNoBoot(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	bootFile := filepath.Join(own(b).dir, "boot")
	for name, spoil := range map[string]func() error{
		"wrong": func() error { return os.WriteFile(bootFile, []byte("earlier"), 0o600) },
		"lost":  func() error { return os.Remove(bootFile) },
		"lost, and containerd ended": func() error {
			pid := containerdPID(t, b)
			kill(t, pid)
			launchtest.Eventually(t, "containerd has ended", func() bool { return !own(b).is(pid) })
			return os.Remove(bootFile)
		},
	} {
		if err := b.Launcher.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bootFile, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		b.Reopen()
		if left := launcher(b).leftovers(g.Spec.Serial); len(left) != 3 || !b.Running(g.Spec.Serial) {
			t.Fatalf("%s: of a running worker there is %v", name, left)
		}
	}
	g.Tell("ping")
	b.Stop(g.Spec.Serial, time.Second)
	g.ExpectProcesses(0)
}

// TestNewFails: it ends the containerd that it has started, and only that.
func TestNewFails(t *testing.T) {
	t.Parallel()
	b := launchtest.NewFolder(t, open)
	spoil := func() {
		busy := filepath.Join(rootfsDir(dirOf(Config{DataDir: b.Config.DataDir})), unfinished+"busy")
		must(t, os.MkdirAll(busy, 0o700), unix.Mount("tmpfs", busy, "tmpfs", 0, ""))
		_, err := open(b.Config)
		must(t, unix.Unmount(busy, 0), os.Remove(busy))
		if err == nil || !strings.Contains(err.Error(), "sweep") {
			t.Fatalf("opened: %v", err)
		}
	}
	spoil()
	expectNoProcess(t, b)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	found, err := findTools(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := startPrivate(canceled, Config{DataDir: b.Config.DataDir, HostID: b.Config.HostID}, found, b.Config.Logger); err == nil {
		t.Fatal("started without waiting for an answer")
	}
	expectNoProcess(t, b)

	b.Reopen()
	t.Cleanup(b.Clean)
	pid := containerdPID(t, b)
	if err := b.Launcher.Close(); err != nil {
		t.Fatal(err)
	}
	spoil()
	b.Reopen()
	if now := containerdPID(t, b); now != pid {
		t.Errorf("a containerd that was found, %d, did not stay: now it is %d", pid, now)
	}
}

// expectNoProcess fails the test if anything runs for the bench's folder.
func expectNoProcess(t *testing.T, b *launchtest.Bench) {
	t.Helper()
	_ = pidfd.Each(func(pid int, _ pidfd.Stat) {
		if strings.Contains(strings.Join(pidfd.Cmdline(pid), " "), b.Config.DataDir) {
			t.Errorf("process %d is left", pid)
			kill(t, pid)
		}
	})
}

// TestContainerdDoesNotStart: the error has its last words and says where to look.
func TestContainerdDoesNotStart(t *testing.T) {
	t.Parallel()
	b := launchtest.NewFolder(t, open)
	dir := filepath.Join(b.Config.DataDir, "containerd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root"), []byte("not a folder"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := open(b.Config)
	if !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(worker.HintOf(err), "containerd.log") || !strings.Contains(err.Error(), "root") {
		t.Fatalf("%v (hint %q)", err, worker.HintOf(err))
	}
	expectNoProcess(t, b)
}

func TestAvailable(t *testing.T) {
	t.Parallel()
	what, err := Available(t.Context())
	if err != nil || !strings.Contains(what, "containerd 1.") && !strings.Contains(what, "containerd v2.") || !strings.Contains(what, ", crun ") {
		t.Fatalf("%q, %v", what, err)
	}
	if !strings.Contains(what, "a shim for each worker") { // ours does not lie beside this program
		t.Errorf("%q does not tell whose shim it is", what)
	}
	ours, err := findTools(t.Context(), os.Getenv(envShim), "")
	if err != nil || ours.shim != os.Getenv(envShim) || strings.Contains(ours.versions, "shim") {
		t.Errorf("%+v, %v", ours, err)
	}
	if _, err := findTools(t.Context(), filepath.Join(t.TempDir(), "none"), ""); !errors.Is(err, worker.ErrUnavailable) || worker.HintOf(err) == "" {
		t.Errorf("a shim that is not there: %v", err)
	}
	if path := lookPath("no-such-program"); path != "" {
		t.Errorf("found %s", path)
	}
	err = unavailable(installHint, "%s is not installed", "crun")
	if !errors.Is(err, worker.ErrUnavailable) || worker.HintOf(err) != "run: apt-get install containerd crun" {
		t.Errorf("%v (hint %q)", err, worker.HintOf(err))
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for version, ok := range map[string]bool{
		"1.6.20~ds1": true, "v2.1.0": true, "2.4.2": true, "1.6.0": true, "1.10.3": true,
		"1.5.18": false, "0.2.5": false, "": false, "dev": false,
	} {
		err := checkVersion(version)
		if (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
		if err != nil && (!errors.Is(err, worker.ErrUnavailable) || worker.HintOf(err) == "") {
			t.Errorf("%q: %v (hint %q)", version, err, worker.HintOf(err))
		}
	}
	const debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n"
	if got := parseVersion(debian); got != "1.6.20~ds1" {
		t.Errorf("read %q", got)
	}
	if got := parseVersion("nonsense"); got != "" {
		t.Errorf("read %q", got)
	}
}

// TestOwnLog: what containerd and its shims log is bounded while they log on.
func TestOwnLog(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, withShim("", itsShimPath)) // which logs every start
	p := own(b)
	log, err := os.OpenFile(p.logFile(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	grow := func(n int) {
		t.Helper()
		if _, err := log.WriteString(strings.Repeat("an old line\n", n/len("an old line\n"))); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		t.Helper()
		if err := p.boundLog(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(p.logFile())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	grow(ownLogBytes / 2)
	if n := len(read()); n < ownLogBytes/2-100 {
		t.Errorf("a short log was cut to %d bytes", n)
	}
	grow(ownLogBytes)
	if n := len(read()); n > ownLogBytes/2+64<<10 {
		t.Errorf("a long log was cut to %d bytes", n)
	}
	g := b.Guest()
	launchtest.Eventually(t, "the log goes on at its end", func() bool {
		text := read()
		return strings.Contains(text, string(g.Spec.Serial)) && !strings.Contains(text, "\x00")
	})
}

// TestLastWords: they are short, however long the log has become.
func TestLastWords(t *testing.T) {
	t.Parallel()
	p := &private{site: &site{dir: t.TempDir()}}
	for log, want := range map[string]string{
		"":              "",
		"one\ntwo\n":    "two",
		"one\ntwo":      "two",
		"\ntwo words\n": "two words",
		strings.Repeat("line\n", 10_000) + "last\n":       "last",
		"first\n" + strings.Repeat("x", 10_000) + "end\n": strings.Repeat("x", 4<<10-len("end\n")) + "end",
	} {
		if err := os.WriteFile(p.logFile(), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := p.lastWords(); got != want {
			t.Errorf("%.20q, %d bytes: %d bytes %.20q, want %d bytes %.20q", log, len(log), len(got), got, len(want), want)
		}
	}
}
