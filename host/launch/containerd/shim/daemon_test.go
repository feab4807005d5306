package shim

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{namespace: "n", folder: t.TempDir(), all: map[string]*container{}, idle: time.NewTimer(time.Hour)}
	t.Cleanup(func() { d.idle.Stop() })
	return d
}

func (d *daemon) member(id string) string { return filepath.Join(d.folder, id) }

// TestSettledBefore: a container that was settled before it came is not made, and one
// that came again is not taken for the one before it.
func TestSettledBefore(t *testing.T) {
	d := newDaemon(t)
	join := func(id string) *container {
		if err := os.WriteFile(d.member(id), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return newContainer(id, t.TempDir(), options{}, "n", [2]string{})
	}
	late := join("late")
	if err := d.dismiss("late"); err != nil {
		t.Fatal(err)
	}
	if err := d.add(late); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("after it was settled: %v", err)
	}
	again := join("again")
	if err := d.add(again); err != nil {
		t.Fatal(err)
	}
	if err := d.add(again); status.Code(err) != codes.AlreadyExists {
		t.Errorf("twice: %v", err)
	}
	if err := d.dismiss("again"); err != nil || d.all["again"] == nil {
		t.Errorf("one that is there was dismissed, %v", err)
	}
	again.gone.Store(true)
	if err := d.dismiss("again"); err != nil || d.all["again"] != nil {
		t.Errorf("one that is gone was not dismissed, %v", err)
	}
	if _, err := os.Lstat(d.member("again")); !os.IsNotExist(err) {
		t.Errorf("its place: %v", err)
	}
}

// TestStuckOutputs: who deletes a container waits a moment for what nobody reads, and
// then does without it.
func TestStuckOutputs(t *testing.T) {
	c := newContainer("c", t.TempDir(), options{}, "n", [2]string{})
	for i, name := range []string{"stdout", "stderr"} {
		path := filepath.Join(c.bundle, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		c.outputs[i] = mustOpen(t, path)
		defer c.outputs[i].container.Close()                                           // somebody has it still
		if _, err := c.outputs[i].container.Write(make([]byte, 100<<10)); err != nil { // more than a FIFO holds
			t.Fatal(err)
		}
	}
	ended := make(chan struct{})
	go func() { c.endOutputs(); close(ended) }()
	for _, what := range []chan struct{}{ended, c.outputs[0].ended, c.outputs[1].ended} {
		select {
		case <-what:
		case <-time.After(time.Minute):
			t.Fatal("it waits for ever")
		}
	}
}

// TestOrphans: what a runtime that was killed leaves is reaped, what belongs to
// somebody is not.
func TestOrphans(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t)
	if err := exec.Command("sh", "-c", "sleep 0.01 &").Run(); err != nil {
		t.Fatal(err)
	}
	own := exec.Command("true") // stands for the first process of a container
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	process, err := hold(own.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	c := newContainer("c", "", options{}, "n", [2]string{})
	c.process = process
	d.all["c"] = c
	for deadline := time.Now().Add(time.Minute); len(children()) > 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("children %v", children())
		}
		d.reapOrphans()
	}
	if _, known, err := process.Wait(); !known || err != nil {
		t.Errorf("the end of a container was reaped by another: %v", err)
	}
	_ = own.Process.Release()
}
