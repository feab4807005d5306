package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

var little = diskLimits{bytes: 16 << 20, files: 200}

func withLittleDisk(c launchtest.Config) (launch.Launcher, error) {
	return newWith(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Logger: c.Logger}, little, usualPulse())
}

// TestDiskLimit: a worker that takes too much of the disk is killed, that is said,
// and who keeps within the limits lives on.
func TestDiskLimit(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, withLittleDisk)
	modest := b.Guest()
	modest.Tell("fill 8")
	modest.Tell("hide 4")
	modest.Tell("files 100")
	for _, command := range []string{"fill 80", "hide 80", "files 300"} {
		t.Run(command, func(t *testing.T) {
			b := b.For(t)
			g := b.Guest()
			g.Provoke(command)
			// Not by the clock of the patient watch: it would wait for half a minute.
			launcher(b).boundDisks(b.Context())
			exit := b.Wait(g.Spec.Serial)
			if want := "killed by SIGKILL, over its disk limit"; !exit.OverDisk || exit.String() != want {
				t.Fatalf("its end is %+v, want %s", exit, want)
			}
			b.Stop(g.Spec.Serial, 0)
			if again := b.Wait(g.Spec.Serial); again != exit {
				t.Errorf("after the stop its end is %+v, want %+v", again, exit)
			}
		})
	}
	modest.Tell("ping")
}

// TestDiskIsWatched: nobody has to ask, and a host that opens the folder later
// watches the workers that it finds.
func TestDiskIsWatched(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, withLittleDisk)
	g := b.Guest()
	if err := b.Launcher.Close(); err != nil {
		t.Fatal(err)
	}
	b.Reopen()
	g.Provoke("fill 200") // more than the free space must drop by
	if exit := b.Wait(g.Spec.Serial); !exit.OverDisk {
		t.Errorf("its end is %+v", exit)
	}
}

// TestUsage counts what a worker might hide from a naive look.
func TestUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	deep := filepath.Join(state, strings.Repeat("d/", deepest+2))
	must(t, os.MkdirAll(state, 0o700))
	must(t, os.WriteFile(filepath.Join(state, "a"), make([]byte, 1<<20), 0o600))
	must(t, os.Link(filepath.Join(state, "a"), filepath.Join(state, "b")))
	must(t, os.Symlink("/", filepath.Join(state, "root")))
	must(t, unix.Mkfifo(filepath.Join(state, "fifo"), 0o600))
	must(t, os.Truncate(filepath.Join(state, "a"), 1<<40)) // holes are not on the disk
	count := func() usage {
		u := usage{limits: diskLimits{bytes: 1 << 30, files: 1000}}
		must(t, u.addTree(dir, "state"))
		return u
	}
	if u := count(); u.over() || u.files != 4 || u.bytes < 1<<20 || u.bytes > 2<<20 {
		t.Errorf("it is %+v", u)
	}
	must(t, os.MkdirAll(deep, 0o700))
	if u := count(); !u.over() {
		t.Errorf("what is nested without end is %+v", u)
	}
	u := usage{limits: little}
	must(t, os.Rename(state, state+"-aside"))
	must(t, os.Symlink("/usr", state))
	if err := u.addTree(dir, "state"); err == nil {
		t.Errorf("a link in place of the folder is followed: %+v", u)
	}
	must(t, os.Remove(state))
	must(t, u.addTree(dir, "state")) // there is none
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkLookAtDisk is a look at one ordinary worker.
func BenchmarkLookAtDisk(b *testing.B) {
	bench := launchtest.NewBench(b, open)
	g := bench.Guest()
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(g.Spec.Dir, launch.StateDir, fmt.Sprint(i)), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	l := launcher(bench)
	for b.Loop() {
		l.boundDisk(b.Context(), g.Spec.Serial, g.Spec.Dir)
	}
}
