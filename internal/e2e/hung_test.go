package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// TestContainerdHangs: doctor says who hangs and what to do, workers answer meanwhile,
// and once that is done all is well.
func TestContainerdHangs(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	nora := h.forge("nora", "template")
	before, pid := h.pids(nora.WorkerSerial), h.containerd()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // or nothing could be removed
	cure := fmt.Sprintf("kill -KILL %d ", pid)
	if said, _, _ := h.run("doctor"); !strings.Contains(said, cure) {
		t.Errorf("doctor says nothing of %q:\n%s", cure, said)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "still here"})
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("all is well again", func() error {
		if said, _, _ := h.run("doctor"); strings.Contains(said, "degraded") {
			return errors.New(said)
		}
		return nil
	})
	if now := h.pids(nora.WorkerSerial); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Errorf("the worker was %v and is %v", before, now)
	}
	h.forge("karl", "template")
}
