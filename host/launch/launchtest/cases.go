package launchtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest/report"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

// life is a worker's whole life, twice.
func life(t *testing.T, b *Bench) {
	spec := b.Spec()
	b.must(b.Launcher.Create(b.Context(), spec))
	made := launch.Image{Digest: spec.Image.Digest, Type: spec.Image.Type, Version: spec.Image.Version}
	if s, ok := b.Status(spec.Serial); !ok || s.Running || s.PID != 0 || s.Unsettled || s.Image != made {
		t.Fatalf("a created worker is listed as %+v, %v", s, ok)
	}
	if exit := b.Wait(spec.Serial); !exit.Unknown {
		t.Fatalf("a worker that never ran ended: %v", exit)
	}
	g := &Guest{t: t, Spec: spec}
	for round := 1; round <= 2; round++ {
		b.must(b.Launcher.Start(b.Context(), spec.Serial))
		g.AwaitUp()
		s, ok := b.Status(spec.Serial)
		if !ok || !s.Running || !s.Unsettled || !slices.Contains(g.Processes(), s.PID) {
			t.Fatalf("a running worker is listed as %+v, %v; processes %v", s, ok, g.Processes())
		}
		b.Stop(spec.Serial, patience)
		b.Stop(spec.Serial, patience)
		g.ExpectProcesses(0)
		if s, ok := b.Status(spec.Serial); !ok || s.Running || s.Unsettled {
			t.Fatalf("a stopped worker is listed as %+v, %v", s, ok)
		}
		if exit := b.Wait(spec.Serial); exit.Unknown || exit.Code != 0 || exit.Signal != "" || time.Since(exit.At) > patience {
			t.Fatalf("stopped with grace, it ended with %+v", exit)
		}
		if got := b.Starts(spec); got != round {
			t.Fatalf("started %d times, want %d", got, round)
		}
	}
	b.Remove(spec.Serial)
	b.Remove(spec.Serial)
	if s, ok := b.Status(spec.Serial); ok {
		t.Fatalf("a removed worker is listed: %+v", s)
	}
	b.must(b.Launcher.Create(b.Context(), spec))
	b.Remove(spec.Serial)
}

func exitCodes(t *testing.T, b *Bench) {
	for _, code := range []int{0, 1, 42} {
		g := b.Guest()
		ended := make(chan launch.Exit, 1)
		go func() {
			exit, err := b.Launcher.Wait(b.Context(), g.Spec.Serial)
			if err != nil {
				t.Error(err)
			}
			ended <- exit
		}()
		g.Provoke("exit " + itoa(code))
		exit := <-ended
		if exit.Code != code || exit.Unknown || exit.Signal != "" || exit.OOMKilled || exit.At.IsZero() {
			t.Errorf("exit %d is reported as %+v", code, exit)
		}
		if again := b.Wait(g.Spec.Serial); again.Code != code || again.Unknown {
			t.Errorf("a second wait says %+v", again)
		}
		if s, ok := b.Status(g.Spec.Serial); !ok || s.Running || !s.Unsettled {
			t.Errorf("an ended worker is listed as %+v, %v", s, ok)
		}
	}
}

func exitAtStart(t *testing.T, b *Bench) {
	spec := b.Spec()
	AtStart(t, spec, "exit 3")
	b.must(b.Launcher.Create(b.Context(), spec))
	b.must(b.Launcher.Start(b.Context(), spec.Serial))
	if exit := b.Wait(spec.Serial); exit.Code != 3 || exit.Unknown {
		t.Fatalf("exit 3 is reported as %+v", exit)
	}
}

func killedFromOutside(t *testing.T, b *Bench) {
	g := b.Guest()
	s, _ := b.Status(g.Spec.Serial)
	b.must(unix.Kill(s.PID, unix.SIGKILL))
	if exit := b.Wait(g.Spec.Serial); exit.Signal != "SIGKILL" || exit.Code != 137 || exit.OOMKilled || exit.Unknown {
		t.Fatalf("a kill is reported as %+v", exit)
	}
}

func unknownWorkers(t *testing.T, b *Bench) {
	const nobody = worker.Serial("DMN-XX-1-00000000-00000")
	if err := b.Launcher.Start(b.Context(), nobody); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("start: %v", err)
	}
	if _, err := b.Launcher.Wait(b.Context(), nobody); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("wait: %v", err)
	}
	if err := b.Launcher.Stop(b.Context(), nobody, time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := b.Launcher.Remove(b.Context(), nobody); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func badSpecs(t *testing.T, b *Bench) {
	srv := capability.Folder{Source: "/srv", Inode: 1}
	for name, spoil := range map[string]func(*launch.Spec){
		"root":            func(s *launch.Spec) { s.UID = 0 },
		"relative folder": func(s *launch.Spec) { s.Dir = "workers/x" },
		"relative binary": func(s *launch.Spec) { s.Image.Path = "store/x" },
		"serial":          func(s *launch.Spec) { s.Serial = "../x" },
		"negative uid":    func(s *launch.Spec) { s.UID = -1 },
		"huge uid":        func(s *launch.Spec) { s.UID = 1<<32 + s.UID },
		"uid of 32 bits":  func(s *launch.Spec) { s.UID = 1 << 31 },
		"no digest":       func(s *launch.Spec) { s.Image.Digest = "" },
		"digest of paths": func(s *launch.Spec) { s.Image.Digest = "../rootfs/" + s.Image.Digest },
		"long digest":     func(s *launch.Spec) { s.Image.Digest += "0" },
		"memory":          func(s *launch.Spec) { s.Limits.MemoryBytes = -1 },
		"cpu":             func(s *launch.Spec) { s.Limits.CPUMillis = -1 },
		"processes":       func(s *launch.Spec) { s.Limits.PIDs = -1 },
		"mount elsewhere": func(s *launch.Spec) { s.Mounts = []launch.Mount{{Place: "/worker", Folder: srv}} },
		"mount climbing":  func(s *launch.Spec) { s.Mounts = []launch.Mount{{Place: "/mnt/..", Folder: srv}} },
		"mount of two": func(s *launch.Spec) {
			s.Mounts = []launch.Mount{{Place: "/mnt/a", Folder: srv}, {Place: "/mnt/a", Folder: srv}}
		},
		"mount of none": func(s *launch.Spec) { s.Mounts = []launch.Mount{{Place: "/mnt/a"}} },
		"relative mount": func(s *launch.Spec) {
			s.Mounts = []launch.Mount{{Place: "/mnt/a", Folder: capability.Folder{Source: "srv", Inode: 1}}}
		},
	} {
		spec := b.Spec()
		spoil(&spec)
		if err := b.Launcher.Create(b.Context(), spec); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	image := b.Image
	image.Digest = "../rootfs/" + image.Digest
	if _, err := b.Launcher.Prepare(b.Context(), image); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("prepared digest %q: %v", image.Digest, err)
	}
}

func noTwins(t *testing.T, b *Bench) {
	g := b.Guest()
	if err := b.Launcher.Create(b.Context(), g.Spec); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("started twice: %v", err)
	}
	g.ExpectProcesses(1)
}

func oneStartWins(t *testing.T, b *Bench) {
	spec := b.Spec()
	b.must(b.Launcher.Create(b.Context(), spec))
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			switch err := b.Launcher.Start(b.Context(), spec.Serial); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, worker.ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	g := &Guest{t: t, Spec: spec}
	g.AwaitUp()
	g.ExpectProcesses(1)
	if won.Load() != 1 || b.Starts(spec) != 1 {
		t.Fatalf("%d starts won, the worker counts %d", won.Load(), b.Starts(spec))
	}
}

func deadNeedsStop(t *testing.T, b *Bench) {
	g := b.Guest()
	g.Provoke("exit 5")
	b.Wait(g.Spec.Serial)
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); !errors.Is(err, worker.ErrConflict) {
		t.Fatalf("started without a stop: %v", err)
	}
	b.Stop(g.Spec.Serial, 0)
	if exit := b.Wait(g.Spec.Serial); exit.Code != 5 || exit.Unknown {
		t.Fatalf("after the stop its end is %+v", exit)
	}
	b.must(b.Launcher.Start(b.Context(), g.Spec.Serial))
	g.AwaitUp()
	g.ExpectProcesses(1)
}

func stopEndsTheDeaf(t *testing.T, b *Bench) {
	g := b.Guest()
	g.Tell("ignore-term")
	const grace = 300 * time.Millisecond
	begun := time.Now()
	b.Stop(g.Spec.Serial, grace)
	if took := time.Since(begun); took < grace {
		t.Errorf("killed after %v, the grace was %v", took, grace)
	}
	g.ExpectProcesses(0)
	if exit := b.Wait(g.Spec.Serial); exit.Signal != "SIGKILL" || exit.Code != 137 {
		t.Errorf("its end is %+v", exit)
	}
}

func stopEndsChildren(t *testing.T, b *Bench) {
	g := b.Guest()
	var f report.Fork
	g.Get("fork 3", &f)
	if f.Started != 3 {
		t.Fatal(f.Error)
	}
	g.ExpectProcesses(4)
	b.Stop(g.Spec.Serial, patience)
	g.ExpectProcesses(0)
	b.must(b.Launcher.Start(b.Context(), g.Spec.Serial))
	g.AwaitUp()
	g.Get("fork 3", &f)
	g.Provoke("exit 0") // the children may outlive it, but no stop
	b.Wait(g.Spec.Serial)
	b.Stop(g.Spec.Serial, 0)
	g.ExpectProcesses(0)
}

// stopEndsTheDisguised: children that shed all that they were born with, but for
// their uid, end with their worker. Under the host's own uid no process launcher
// can promise that.
func stopEndsTheDisguised(t *testing.T, b *Bench) {
	if os.Geteuid() != 0 {
		return
	}
	for _, end := range []func(*Guest){
		func(g *Guest) { b.Stop(g.Spec.Serial, patience) },
		func(g *Guest) { b.Remove(g.Spec.Serial) },
	} {
		g := b.Guest()
		var f report.Fork
		g.Get("disguise", &f)
		if f.Started == 0 {
			t.Fatal(f.Error)
		}
		t.Logf("%d children, then: %q", f.Started, f.Error) // a cage may refuse namespaces
		t.Cleanup(g.killLeftovers)
		g.ExpectProcesses(1 + f.Started)
		end(g)
		g.ExpectProcesses(0)
	}
}

func removalEndsAll(t *testing.T, b *Bench) {
	g := b.Guest()
	g.Tell("ignore-term")
	b.Remove(g.Spec.Serial)
	g.ExpectProcesses(0)
	if _, err := os.Stat(filepath.Join(g.Spec.Dir, "identity.json")); err != nil {
		t.Errorf("the worker's folder was touched: %v", err)
	}
}

func waitEndsWithContext(t *testing.T, b *Bench) {
	g := b.Guest()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Launcher.Wait(ctx, g.Spec.Serial); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waited for a running worker: %v", err)
	}
	g.Tell("ping")
}

func log(t *testing.T, b *Bench) {
	g := b.Guest()
	const size = 2 << 20
	g.Tell("flood " + itoa(size))
	Eventually(t, "the log holds the flood", func() bool { return len(b.LogText(g.Spec)) >= size })
	b.Stop(g.Spec.Serial, patience)
	b.must(b.Launcher.Start(b.Context(), g.Spec.Serial))
	g.AwaitUp()
	const line = "testworker: started\n"
	Eventually(t, "the log holds both starts", func() bool { return strings.Count(b.LogText(g.Spec), line) == 2 })
	info, err := os.Stat(filepath.Join(g.Spec.Dir, launch.LogsDir, launch.LogFile))
	b.must(err)
	if info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the log is open to others: %v", info.Mode())
	}
}

// logOfOneStream: a worker that closes one stream is still heard, and not
// blocked, on the other.
func logOfOneStream(t *testing.T, b *Bench) {
	g := b.Guest()
	g.Tell("close-stdout")
	const size = 1 << 20
	g.Tell("flood " + itoa(size))
	Eventually(t, "the log holds what went to stderr", func() bool { return len(b.LogText(g.Spec)) >= size/2 })
}
