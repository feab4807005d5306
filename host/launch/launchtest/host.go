package launchtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// plan is what a host process is to do: start a worker, and live on.
type plan struct {
	DataDir, HostID string
	Spec            launch.Spec
}

// Words of a host process on its standard output.
const (
	wordOpen = "open" // it is about to create and start the worker
	wordUp   = "up"   // the worker is started
)

func actAsHost(text string, open Open) int {
	if err := hostMain(text, open); err != nil {
		fmt.Fprintln(os.Stderr, "launchtest host:", err)
		return 1
	}
	select {} // until killed
}

func hostMain(text string, open Open) error {
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	ctx := context.Background()
	l, err := open(Config{DataDir: p.DataDir, HostID: p.HostID, Logger: hclog.NewNullLogger()})
	if err != nil {
		return err
	}
	if _, err := l.Prepare(ctx, p.Spec.Image); err != nil {
		return err
	}
	fmt.Println(wordOpen)
	if err := l.Create(ctx, p.Spec); err != nil && !errors.Is(err, worker.ErrConflict) {
		return err
	}
	if err := l.Start(ctx, p.Spec.Serial); err != nil {
		return err
	}
	fmt.Println(wordUp)
	return nil
}

// hostProcess runs a host in a process of its own until it has said word.
func hostProcess(b *Bench, spec launch.Spec, word string) *exec.Cmd {
	b.t.Helper()
	text, err := json.Marshal(plan{DataDir: b.Config.DataDir, HostID: b.Config.HostID, Spec: spec})
	b.must(err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHost+"="+string(text))
	cmd.Stderr = b.t.Output()
	out, err := cmd.StdoutPipe()
	b.must(err)
	b.must(cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == word {
			return cmd
		}
	}
	_ = cmd.Wait()
	b.t.Fatalf("the host process ended before it said %q: %v", word, cmd.ProcessState)
	return nil
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// closeDetaches: after Close the worker lives on, and nobody hangs.
func closeDetaches(t *testing.T, open Open) {
	b := NewBench(t, open)
	g := b.Guest()
	old := b.Launcher
	waited := make(chan error, 1)
	go func() { _, err := old.Wait(b.Context(), g.Spec.Serial); waited <- err }()
	b.must(old.Close())
	b.must(old.Close())
	if err := <-waited; !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("a waiter got %v", err)
	}
	if err := old.Start(b.Context(), g.Spec.Serial); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("start on a closed launcher: %v", err)
	}
	if _, err := old.List(b.Context()); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("list on a closed launcher: %v", err)
	}
	const size = 1 << 20
	g.Tell("flood " + itoa(size)) // nobody of ours is there to read it
	Eventually(t, "the log holds the flood", func() bool { return len(b.LogText(g.Spec)) >= size })
	b.Reopen()
	comesBack(t, b, g)
}

// abandonedHost: a new launcher takes over from one that nobody closed.
func abandonedHost(t *testing.T, open Open) {
	b := NewBench(t, open)
	g := b.Guest()
	old := b.Launcher
	b.Reopen()
	comesBack(t, b, g)
	b.must(old.Close())
}

// comesBack: the launcher over g's folder is new, and knows g in every respect.
func comesBack(t *testing.T, b *Bench, g *Guest) {
	t.Helper()
	g.Tell("ping")
	g.ExpectProcesses(1)
	if !b.Running(g.Spec.Serial) {
		t.Fatal("a running worker is not listed as running")
	}
	if err := b.Launcher.Create(b.Context(), g.Spec); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("created again: %v", err)
	}
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("started again: %v", err)
	}
	ended := make(chan error, 1)
	go func() { _, err := b.Launcher.Wait(b.Context(), g.Spec.Serial); ended <- err }()
	b.Stop(g.Spec.Serial, patience)
	b.must(<-ended)
	g.ExpectProcesses(0)
	b.must(b.Launcher.Start(b.Context(), g.Spec.Serial))
	g.AwaitUp()
	g.ExpectProcesses(1)
}

// killedHost: a host dies by SIGKILL; its worker does not, and one that dies
// meanwhile is reported at once.
func killedHost(t *testing.T, open Open) {
	b := NewFolder(t, open)
	alive := &Guest{t: t, Spec: b.Spec()}
	kill(hostProcess(b, alive.Spec, wordUp))
	dead := &Guest{t: t, Spec: b.Spec()}
	kill(hostProcess(b, dead.Spec, wordUp))
	dead.AwaitUp()
	dead.Provoke("exit 9")
	Eventually(t, "the worker has ended", func() bool { return len(dead.Processes()) == 0 })

	b.Reopen()
	t.Cleanup(b.Clean)
	exit := b.Wait(dead.Spec.Serial)
	if !exit.Unknown && exit.Code != 9 {
		t.Errorf("died while away: %+v", exit)
	}
	if b.Running(dead.Spec.Serial) {
		t.Error("a dead worker is listed as running")
	}
	if err := b.Launcher.Start(b.Context(), dead.Spec.Serial); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("started without a stop: %v", err)
	}
	b.Stop(dead.Spec.Serial, 0)
	b.must(b.Launcher.Start(b.Context(), dead.Spec.Serial))
	dead.AwaitUp()
	comesBack(t, b, alive)
}

// killedAtAnyMoment kills hosts while they start a worker. Whatever came of it,
// the next host knows it, and there is never a second one.
func killedAtAnyMoment(t *testing.T, open Open) {
	b := NewBench(t, open)
	begun := time.Now()
	g := b.Guest()
	usual := time.Since(begun)
	b.Remove(g.Spec.Serial)
	for range 5 {
		spec := b.Spec()
		g := &Guest{t: t, Spec: spec}
		host := hostProcess(b, spec, wordOpen)
		time.Sleep(rand.N(usual)) // the moment
		kill(host)

		before := b.Launcher
		b.Reopen()
		b.must(before.Close())
		// What the host had asked of others before it died may come true after.
		if err := b.Launcher.Create(b.Context(), spec); err != nil && !errors.Is(err, worker.ErrConflict) {
			t.Fatal(err)
		}
		if _, known := b.Status(spec.Serial); !known {
			t.Fatal("a created worker is not listed")
		}
		if b.Running(spec.Serial) {
			if err := b.Launcher.Start(b.Context(), spec.Serial); !errors.Is(err, worker.ErrConflict) {
				t.Fatalf("started a running worker: %v", err)
			}
		} else if err := b.Launcher.Start(b.Context(), spec.Serial); errors.Is(err, worker.ErrConflict) {
			b.Stop(spec.Serial, 0)
			b.must(b.Launcher.Start(b.Context(), spec.Serial))
		} else {
			b.must(err)
		}
		g.AwaitUp()
		g.ExpectProcesses(1)
		b.Stop(spec.Serial, patience)
		g.ExpectProcesses(0)
		b.Remove(spec.Serial)
	}
}

func downRefuses(t *testing.T, open Open) {
	b := NewBench(t, open)
	g := b.Guest()
	if err := b.Launcher.Down(b.Context()); !errors.Is(err, worker.ErrConflict) {
		t.Fatalf("went down with a worker running: %v", err)
	}
	g.Tell("ping")
}

func itoa(n int) string { return strconv.Itoa(n) }
