package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// TestBombs: who takes all that can be had of something gets no more than its
// share, or is ended and that is said; nobody else notices.
func TestBombs(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			c := newCage(t, "--runtime", runtime)
			calm := c.watchBystander()
			for _, b := range fillers(t) {
				c.check(b)
			}
			c.hog()
			c.forkBomb()
			var all sync.WaitGroup
			all.Go(func() { c.endsItself("glutton", "out of memory", "hostile.allocate", map[string]int{"n": 1000}) })
			all.Go(func() { c.hoards("fill hidden"); c.hoards("fill named") })
			all.Wait()
			calm()
			c.bombControls()
		})
	}
}

// fillers take all that there is of something, and get less in a cage than outside.
func fillers(t *testing.T) []attempt {
	t.Helper()
	folder := t.TempDir()
	return []attempt{
		{name: "open files", want: "EMFILE at 4000", whole: true},
		{name: "grow", args: []string{"/tmp/long", "1025"}, want: "EFBIG", control: []string{folder + "/long", "1025"}},
		{name: "fill parts", args: []string{"/tmp", "100"}, want: "ENOSPC", control: []string{folder, "100"}},
		{name: "fill files", args: []string{"/tmp", "20000"}, want: "ENOSPC", control: []string{folder, "20000"}},
	}
}

// hoards takes more disk than a worker may have: what it got by its end is bounded by
// what can be written between two looks, and goes with it.
func (c *cage) hoards(how string) {
	c.t.Helper()
	name := strings.ReplaceAll(how, " ", "-")
	c.endsItself(name, "over its disk limit", "hostile.try", map[string]any{"name": how, "args": []string{"/worker/state", "4096", "15"}})
	folder := c.folder(c.worker(name).WorkerSerial)
	var left int64
	files, _ := filepath.Glob(filepath.Join(folder, "state", "filled*"))
	for _, file := range files {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			c.t.Error(err)
		}
		left += st.Blocks * 512
	}
	c.t.Logf("%s: %d MiB are left in %d files", how, left>>20, len(files))
	if named := how == "fill named"; named != (left > 1<<30) || left >= 4<<30 {
		c.t.Errorf("%s: %d MiB are left in %d files", how, left>>20, len(files))
	}
	if _, stderr, code := c.run("retire", name); code != 0 {
		c.t.Errorf("retire: exit %d: %s", code, stderr)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		c.t.Errorf("its folder: %v", err)
	}
}

// bombControls: what ends a worker is nothing that this machine has not.
func (c *cage) bombControls() {
	c.t.Helper()
	folder := c.t.TempDir()
	for name, args := range map[string][]string{
		"allocate": {"1000"}, "fill hidden": {folder, "2048", "0"},
		// Not a fork bomb: as many processes as have more threads than a worker may.
		"many processes": {"150"},
	} {
		if got := c.asRoot(name, args...); got != "ok" {
			c.t.Errorf("%s %q: %s without the cage: that it ends a worker shows nothing", name, args, got)
		}
	}
}

// hog takes all processors, of which it may have a fifth of one. That is asked of
// its cgroup: on a busy machine it gets less, and never more.
func (c *cage) hog() {
	c.t.Helper()
	const share, forMillis = 0.2, 3000
	made, err := c.client.Forge(c.t.Context(), client.ForgeRequest{Name: "hog", Type: "hostile", ClassCode: "A1", Limits: client.Limits{CPUMillis: share * 1000}})
	if err != nil {
		c.t.Fatal(err)
	}
	began, before := time.Now(), c.processorTime(made.WorkerSerial)
	c.mustSend("hog", "hostile.spin", map[string]int{"n": forMillis})
	used := c.processorTime(made.WorkerSerial) - before
	took := time.Since(began)
	c.t.Logf("the hog used %v of %v", used, took)
	if most := time.Duration(1.2 * share * float64(took)); used > most {
		c.t.Errorf("the hog used %v of a processor in %v, at most %v are its share", used, took, most)
	}
	if used == 0 {
		c.t.Error("the hog used nothing: this shows nothing")
	}
}

// processorTime is what a worker's cgroup has used, under cgroup v1 or v2.
func (h *host) processorTime(serial string) time.Duration {
	h.t.Helper()
	group := filepath.Join("dals-"+h.id, serial)
	for _, file := range []string{"cpuacct", "cpu,cpuacct"} {
		if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file, group, "cpuacct.usage")); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return time.Duration(n)
		}
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "cpu.stat"))
	if err != nil {
		h.t.Fatalf("no cgroup tells what %s has used: %v", serial, err)
	}
	words := strings.Fields(string(text))
	n, err := strconv.ParseInt(words[slices.Index(words, "usage_usec")+1], 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return time.Duration(n) * time.Microsecond
}

// forkBomb leaves the prisoner as many processes as it can have, and then ends it.
func (c *cage) forkBomb() {
	c.t.Helper()
	// Whether the worker itself stands it is its own affair.
	got, err := c.try("prisoner", "fork bomb")
	c.t.Logf("fork bomb: %s, %v", got, err)
	const most, own = 256, 1
	if n := len(c.pids(c.prisoner)); n > most || n < own {
		c.t.Errorf("%d processes after the fork bomb, at most %d are allowed", n, most)
	}
	if _, stderr, code := c.run("retire", "prisoner"); code != 0 {
		c.t.Errorf("retire the fork bomb: exit %d: %s", code, stderr)
	}
	if left := c.pids(c.prisoner); len(left) > 0 {
		c.t.Errorf("processes %v of the fork bomb are left", left)
	}
}

// endsItself forges a worker, has it do what it does not survive, and finds the
// reason in the record.
func (c *cage) endsItself(name, why, kind string, in any) {
	serial := c.forge(name, "hostile").WorkerSerial
	_, err := c.send(name, kind, in)
	c.t.Logf("%s: %v", name, err)
	c.eventually(name+" is ended, "+why, func() error {
		n := c.count(func(e record.Entry) bool {
			return e.Worker != nil && string(e.Worker.Serial) == serial && strings.Contains(e.Reason, why)
		})
		if n == 0 {
			return errors.New("nothing in the record says so")
		}
		return nil
	})
}

// watchBystander asks the other worker all the time, until what it returns is
// called.
func (c *cage) watchBystander() (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan time.Duration)
	go func() {
		var slowest time.Duration
		for ctx.Err() == nil {
			began := time.Now()
			if _, err := c.send("bystander", "template.echo", map[string]string{"message": "well?"}); err != nil {
				c.t.Errorf("the bystander: %v", err)
			}
			slowest = max(slowest, time.Since(began))
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond): // between two questions
			}
		}
		done <- slowest
	}()
	return func() {
		c.t.Helper()
		cancel()
		slowest := <-done
		c.t.Logf("the slowest answer took %v", slowest)
		if slowest > 10*time.Second {
			c.t.Errorf("the bystander took %v to answer", slowest)
		}
		if w := c.worker("bystander"); w.State != "live" || w.Restarts != 0 {
			c.t.Errorf("afterwards the bystander is %+v", w)
		}
	}
}
