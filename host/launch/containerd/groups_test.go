package containerd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// daemons are the shims of a launcher's containerd.
func daemons(t *testing.T, b *launchtest.Bench) (pids []int) {
	t.Helper()
	all, err := own(b).shims("")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		pids = append(pids, one.Identity().PID)
		_ = one.Close()
	}
	return pids
}

// parent is the process whose child pid is: the fourth field of proc_pid_stat(5).
func parent(t *testing.T, pid int) (of int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(text[strings.LastIndexByte(string(text), ')')+1:]), " %c %d", new(rune), &of); err != nil {
		t.Fatal(err)
	}
	return of
}

// TestGroups: a shim has sixteen workers and no more; with it they end, and no
// others; and when the last worker has gone so has every shim.
func TestGroups(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	guests := make([]*launchtest.Guest, 18)
	for i := range guests {
		guests[i] = b.Guest()
	}
	members, pid := map[int]int{}, map[*launchtest.Guest]int{}
	for _, g := range guests {
		s, _ := b.Status(g.Spec.Serial)
		pid[g] = s.PID
		members[parent(t, s.PID)]++
	}
	shims := daemons(t, b)
	if len(shims) != 2 || len(members) != 2 || members[shims[0]]*members[shims[1]] != 16*2 {
		t.Fatalf("shims %v, workers of each %v", shims, members)
	}
	expectOwnLines(t, b, guests)
	lost := map[*launchtest.Guest]bool{}
	for _, g := range guests {
		lost[g] = parent(t, pid[g]) == shims[0]
	}
	kill(t, shims[0])
	for _, g := range guests {
		if lost[g] {
			if exit := b.Wait(g.Spec.Serial); !exit.Unknown && exit.Signal != "SIGKILL" {
				t.Errorf("its end is %+v", exit)
			}
			b.Stop(g.Spec.Serial, 0)
			if err := b.Launcher.Start(b.Context(), g.Spec.Serial); err != nil {
				t.Fatal(err)
			}
			g.AwaitUp()
		} else if s, _ := b.Status(g.Spec.Serial); !s.Running || s.PID != pid[g] {
			t.Errorf("a worker of another shim is %+v, was process %d", s, pid[g])
		}
	}
	for _, g := range guests {
		b.Remove(g.Spec.Serial)
	}
	launchtest.Eventually(t, "the shims have nothing to do and end", func() bool { return len(daemons(t, b)) == 0 })
}

// expectOwnLines: what workers print at the same time, through the same shims, is in the
// log of who has printed it.
func expectOwnLines(t *testing.T, b *launchtest.Bench, guests []*launchtest.Guest) {
	t.Helper()
	const size = 512 << 10
	var printing sync.WaitGroup
	for i, g := range guests {
		printing.Go(func() {
			if said := g.Ask(fmt.Sprintf("flood %d %c", size, 'a'+i)); said != "ok" {
				t.Error(said)
			}
		})
	}
	printing.Wait()
	for i, g := range guests {
		own := strings.Repeat(string(rune('a'+i)), 1023)
		launchtest.Eventually(t, "all of its lines are in its log", func() bool {
			return strings.Count(b.LogText(g.Spec), own+"\n") == size/1024
		})
		for line := range strings.Lines(b.LogText(g.Spec)) {
			if len(line) > 1000 && line != own+"\n" {
				t.Fatalf("the log of %s has a line %.20q... of %d bytes", g.Spec.Serial, line, len(line))
			}
		}
	}
}

// TestNothingInherited: a container has no descriptor of its shim's, neither before it
// is started nor after.
func TestNothingInherited(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g, warm := b.Guest(), b.Spec()
	if err := b.Launcher.Warm(b.Context(), warm); err != nil {
		t.Fatal(err)
	}
	task, err := launcher(b).task(b.Context(), warm.Serial)
	if err != nil {
		t.Fatal(err)
	}
	running, _ := b.Status(g.Spec.Serial)
	sockets := map[string]bool{}
	for _, pid := range daemons(t, b) {
		for _, link := range descriptors(t, pid) {
			sockets[link] = strings.HasPrefix(link, "socket:")
		}
	}
	for _, pid := range []int{int(task.Pid), running.PID} {
		for _, link := range descriptors(t, pid) {
			if sockets[link] {
				t.Errorf("process %d has %s of its shim", pid, link)
			}
		}
	}
	b.Remove(warm.Serial)
}

func descriptors(t *testing.T, pid int) (links []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			links = append(links, link)
		}
	}
	return links
}

// TestShimsKilled: shims are killed again and again while workers are started and
// stopped. Nothing stays that cannot be settled, and nobody is left to be reaped.
func TestShimsKilled(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	guests := make([]*launchtest.Guest, 6)
	for i := range guests {
		guests[i] = b.Guest()
	}
	until := time.Now().Add(8 * time.Second)
	var busy sync.WaitGroup
	failed, done := 0, 0
	var mu sync.Mutex
	for _, g := range guests {
		busy.Go(func() {
			for time.Now().Before(until) {
				err := b.Launcher.Stop(b.Context(), g.Spec.Serial, 0)
				if err == nil {
					err = b.Launcher.Start(b.Context(), g.Spec.Serial)
				}
				mu.Lock()
				if done++; err != nil {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	killed := 0
	for time.Now().Before(until) {
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond) // anywhere in what goes on
		for _, pid := range daemons(t, b) {
			if unix.Kill(pid, unix.SIGKILL) == nil { // else it had nothing to do and has ended
				killed++
			}
		}
	}
	busy.Wait()
	t.Logf("%d shims were killed; %d of %d starts failed", killed, failed, done)
	if killed == 0 || done == failed {
		t.Error("nothing was tried")
	}
	for _, g := range guests {
		b.Stop(g.Spec.Serial, 0)
		if left := launcher(b).leftovers(g.Spec.Serial); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if err := b.Launcher.Start(b.Context(), g.Spec.Serial); err != nil {
			t.Fatal(err)
		}
		g.AwaitUp()
		g.ExpectProcesses(1)
	}
	for _, pid := range daemons(t, b) {
		expectNoZombies(t, pid)
	}
}

// expectNoZombies waits until a process has no children that have ended.
func expectNoZombies(t *testing.T, of int) {
	t.Helper()
	launchtest.Eventually(t, "no children wait to be reaped", func() bool {
		zombies := 0
		_ = pidfd.Each(func(pid int, _ pidfd.Stat) {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			var state rune
			var parent int
			_, _ = fmt.Sscanf(string(text[strings.LastIndexByte(string(text), ')')+1:]), " %c %d", &state, &parent)
			if state == 'Z' && parent == of {
				zombies++
			}
		})
		return zombies == 0
	})
}

// TestStuckShim: a shim that does not answer is told of, its workers run on, others are
// started and stopped, and once it is killed its own are started again.
func TestStuckShim(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	stuck := daemons(t, b)[0]
	t.Cleanup(func() { _ = unix.Kill(stuck, unix.SIGCONT) }) // or nothing of it could be removed
	if err := unix.Kill(stuck, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	other := b.Guest()
	if s, err := b.Launcher.List(b.Context()); !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), fmt.Sprintf("kill -KILL %d ", stuck)) {
		t.Errorf("%v, %v", s, err)
	}
	g.Report() // it answers
	b.Remove(other.Spec.Serial)
	kill(t, stuck)
	b.Wait(g.Spec.Serial)
	b.Stop(g.Spec.Serial, 0)
	if err := b.Launcher.Start(b.Context(), g.Spec.Serial); err != nil {
		t.Fatal(err)
	}
	g.AwaitUp()
}
