package e2e

import (
	"fmt"
	"os"
	"testing"
)

// TestUserNamespaces: with user namespaces what was granted holds as without, over
// stops, upgrades and hosts; a host without them takes them from a worker when that is
// started again.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	h := &host{t: t, launcher: "containerd", flags: []string{"--userns", "--warm", "template=1"}}
	h.setup()
	grantsOverTime(t, h)
	far, nora := h.worker("far").WorkerSerial, h.worker("nora").WorkerSerial
	if _, stderr, code := h.run("start", "far"); code != 0 {
		t.Fatalf("start: exit %d: %s", code, stderr)
	}
	ours := h.users(fmt.Sprint(os.Getpid()))
	if a, b := h.usersOf(far), h.usersOf(nora); a == ours || b == ours || a == b {
		t.Errorf("user namespaces %s and %s, ours is %s", a, b, ours)
	}
	h.flags = nil
	h.next(h.kill)
	if _, stderr, code := h.run("restart", "far"); code != 0 {
		t.Fatalf("restart: exit %d: %s", code, stderr)
	}
	if a, b := h.usersOf(far), h.usersOf(nora); a != ours || b == ours {
		t.Errorf("with a host without them user namespaces %s and %s, ours is %s", a, b, ours)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "still here"})
}

// usersOf is the user namespace of a worker.
func (h *host) usersOf(serial string) string {
	h.t.Helper()
	pids := h.pids(serial)
	if len(pids) != 1 {
		h.t.Fatalf("%s has the processes %v", serial, pids)
	}
	return h.users(fmt.Sprint(pids[0]))
}

func (h *host) users(pid string) string {
	h.t.Helper()
	link, err := os.Readlink("/proc/" + pid + "/ns/user")
	if err != nil {
		h.t.Fatal(err)
	}
	return link
}
