package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// onRuntimes runs a test with each runtime.
func onRuntimes(t *testing.T, test func(*testing.T, *launchtest.Bench)) {
	t.Parallel()
	for _, runtime := range []string{Crun, Runc} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			test(t, launchtest.NewBench(t, with(runtime)))
		})
	}
}

// TestMountsAreCaged: what lies in a granted folder, whoever put it there, is data
// and nothing else, and leads nowhere.
func TestMountsAreCaged(t *testing.T) {
	onRuntimes(t, func(t *testing.T, b *launchtest.Bench) {
		spec, dir := b.Spec(), b.Folder()
		below, program := filepath.Join(dir, "below"), filepath.Join(dir, "program")
		text, err := os.ReadFile("/bin/true")
		must(t, err, os.WriteFile(program, text, 0o755), os.Chmod(program, os.ModeSetuid|0o755),
			unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o666, 1<<8|3), os.Chmod(filepath.Join(dir, "device"), 0o666),
			os.Symlink("/etc/passwd", filepath.Join(dir, "outside")), os.Symlink("../../../../etc/passwd", filepath.Join(dir, "climbing")),
			os.Symlink("/proc/1/root"+dir, filepath.Join(dir, "round")), os.Mkdir(below, 0o755), os.WriteFile(filepath.Join(below, "beneath"), nil, 0o644),
			unix.Mount("tmpfs", below, "tmpfs", 0, ""), os.WriteFile(filepath.Join(below, "above"), nil, 0o644))
		t.Cleanup(func() { must(t, unix.Unmount(below, unix.MNT_DETACH)) })
		spec.Mounts = []launch.Mount{b.Mount("data", dir, false), b.Mount("fixed", dir, true)}
		g := b.Start(spec)
		checkGranted(t, g.Report().Mounts)
		for command, works := range map[string]bool{
			"read /mnt/data/given": true, "read /mnt/fixed/given": true, "write /mnt/data/x": true, "write /mnt/fixed/y": false,
			"write /mnt/fixed/x": false, "execute /mnt/data/program": false, "execute /mnt/fixed/program": false,
			"read /mnt/data/program": true, "read /mnt/data/device": false, "write /mnt/data/device": false, "read /mnt/fixed/device": false,
			"read /mnt/data/outside": false, "read /mnt/data/climbing": false, "read /mnt/data/round": false,
			"read /mnt/data/below/beneath": true, "read /mnt/data/below/above": false,
			"write /mnt/x": false, "read /mnt/data/../..": true, "read /mnt/data/../../home": false, "read " + dir: false,
		} {
			if got := g.Ask(command); (got == "ok") != works {
				t.Errorf("%s: %s", command, got)
			}
		}
		other := b.Guest()
		if got := other.Ask("read /mnt/data"); got == "ok" {
			t.Error("a worker without a grant sees the folder")
		}
		if got := other.Ask("write /mnt/x"); got == "ok" {
			t.Error("a worker without mounts can write /mnt")
		}
	})
}

func checkGranted(t *testing.T, lines []string) {
	t.Helper()
	want := map[string][]string{
		"/mnt": {"rw", "nosuid", "nodev", "noexec"}, "/mnt/data": {"rw", "nosuid", "nodev", "noexec"}, "/mnt/fixed": {"ro", "nosuid", "nodev", "noexec"},
	}
	for _, line := range lines {
		fields := strings.Fields(line)
		must, ok := want[fields[4]]
		if !ok {
			continue
		}
		delete(want, fields[4])
		for _, option := range must {
			if !slices.Contains(strings.Split(fields[5], ","), option) {
				t.Errorf("without %s: %s", option, line)
			}
		}
		if strings.Contains(line, " shared:") || strings.Contains(line, " master:") {
			t.Errorf("mounts come or go by it: %s", line)
		}
	}
	for point := range want {
		t.Errorf("it does not see %s", point)
	}
}

// TestMountsLeaveNoTrace: of mounts that come and go while a worker runs it sees
// nothing, and its root has no folder for what it was granted.
func TestMountsLeaveNoTrace(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	spec, dir := b.Spec(), b.Folder()
	spec.Mounts = []launch.Mount{b.Mount("data", dir, false)}
	g := b.Start(spec)
	later := filepath.Join(dir, "later")
	must(t, os.Mkdir(later, 0o755), unix.Mount("tmpfs", later, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(later, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(later, "x"), nil, 0o644))
	if got := g.Ask("read /mnt/data/later"); got != "ok" {
		t.Errorf("its folder: %s", got)
	}
	if got := g.Ask("read /mnt/data/later/x"); got == "ok" {
		t.Error("it sees what was mounted after it had begun")
	}
	root := launcher(b).rootfs(spec.Image.Digest)
	if entries, err := os.ReadDir(filepath.Join(root, "mnt")); err != nil || len(entries) > 0 {
		t.Errorf("its root has %v, %v", entries, err)
	}
	b.Remove(spec.Serial)
	if text, err := os.ReadFile(filepath.Join(dir, "given")); err != nil || string(text) != "given" {
		t.Errorf("after its removal: %q, %v", text, err)
	}
}

// TestLateMount: of a file system that was mounted when containerd ran already a
// worker is shown that or nothing, and never what lies beneath; of one that began
// after it, always that.
func TestLateMount(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	spec, dir := b.Spec(), b.Folder()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""), os.WriteFile(filepath.Join(dir, "late"), nil, 0o644))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	spec.Mounts = []launch.Mount{b.Mount("data", dir, true)}
	must(t, b.Launcher.Create(b.Context(), spec))
	err := b.Launcher.Start(b.Context(), spec.Serial)
	t.Logf("started: %v", err) // it depends on whether mounts of the machine are shared
	if err != nil {
		if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), "the launcher finds another folder") || !strings.Contains(worker.HintOf(err), "end that containerd") || b.Starts(spec) > 0 {
			t.Error(err, worker.HintOf(err))
		}
		before := containerdPID(t, b)
		kill(t, before)
		launchtest.Eventually(t, "containerd is back", func() bool {
			found, err := own(b).find()
			for _, p := range found {
				defer p.Close()
			}
			return err == nil && len(found) == 1 && found[0].Identity().PID != before && checkServer(b.Context(), launcher(b).client) == nil
		})
	}
	b.Remove(spec.Serial)
	if got := b.Start(spec).Ask("read /mnt/data/late"); got != "ok" {
		t.Errorf("it sees what lies beneath: %s", got)
	}
}

// TestSwappedMount: a path that leads elsewhere in the moment between the check
// and the mount gets no worker started.
func TestSwappedMount(t *testing.T) {
	onRuntimes(t, func(t *testing.T, b *launchtest.Bench) {
		for what, put := range map[string]func(dir string) error{
			"link":   func(dir string) error { return os.Symlink("/etc", dir) },
			"folder": func(dir string) error { return os.Mkdir(dir, 0o777) },
		} {
			l, spec, dir := launcher(b), b.Spec(), b.Folder()
			spec.Mounts = []launch.Mount{b.Mount("data", dir, false)}
			must(t, l.Create(b.Context(), spec))
			c, err := l.created(b.Context(), spec.Serial)
			must(t, err)
			folders, err := openMounts(c.Container)
			must(t, err)
			if err := l.checkMounts(b.Context(), spec.Serial, nil); err != nil {
				t.Errorf("nothing to check: %v", err)
			}
			must(t, os.Rename(dir, dir+" aside"), put(dir), l.haveTask(b.Context(), c))
			err = l.checkMounts(b.Context(), spec.Serial, folders)
			if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), "another folder") {
				t.Errorf("%s: %v", what, err)
			}
			closeMounts(folders)
			if err := l.Start(b.Context(), spec.Serial); !errors.Is(err, worker.ErrInvalid) {
				t.Errorf("%s: started: %v", what, err)
			}
			must(t, os.RemoveAll(dir), os.Rename(dir+" aside", dir))
			// The task that was made has the wrong folder still.
			if err := l.Start(b.Context(), spec.Serial); !errors.Is(err, worker.ErrInvalid) {
				t.Errorf("%s: started with what was mounted: %v", what, err)
			}
			must(t, l.Start(b.Context(), spec.Serial))
			if b.Starts(spec) > 1 {
				t.Errorf("%s: it was started %d times", what, b.Starts(spec))
			}
		}
	})
}
