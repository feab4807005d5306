package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
)

// fake is a state folder with groups whose daemons answer and have no containers.
type fake struct {
	groups
	t  *testing.T
	mu sync.Mutex
	// daemons are those that live, by their group's folder.
	daemons map[string]*ttrpc.Server
}

func newFake(t *testing.T) *fake {
	t.Helper()
	g, err := groupsIn(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{groups: g, t: t, daemons: map[string]*ttrpc.Server{}}
	t.Cleanup(func() {
		for _, d := range f.daemons {
			_ = d.Close()
		}
		if err := Clear(filepath.Dir(g.dir)); err != nil {
			t.Error(err)
		}
	})
	return f
}

// make is what starts a daemon.
func (f *fake) make(folder string, listener *net.UnixListener) error {
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	inherited, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	task.RegisterTTRPCTaskService(server, service{daemon: newDaemon(f.t)})
	go func() { _ = server.Serve(context.Background(), inherited) }()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.daemons[folder] = server
	return nil
}

func (f *fake) mustJoin(id string) string {
	f.t.Helper()
	socket, err := f.join(id, f.make)
	if err != nil {
		f.t.Fatal(err)
	}
	return socket
}

// kill ends the daemon of the group that a container is in.
func (f *fake) kill(id string) (group string) {
	f.t.Helper()
	group = f.groupOf(id)
	_ = f.daemons[f.folder(group)].Close()
	return group
}

// groupOf is the one group that a container is in, or "".
func (f *fake) groupOf(id string) string {
	f.t.Helper()
	in, err := f.having(id)
	if err != nil || len(in) > 1 {
		f.t.Fatalf("%s is in %v, %v", id, in, err)
	}
	return strings.Join(in, "")
}

// TestJoin: however many come at once, each is in one group, none is too large, and
// there are no more than need be.
func TestJoin(t *testing.T) {
	f := newFake(t)
	const n = 2*groupSize + 3
	sockets := map[string]int{}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			socket, err := f.join(fmt.Sprint("c", i), f.make)
			if err != nil {
				t.Error(err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			sockets[socket]++
		})
	}
	all.Wait()
	if len(sockets) != 3 || len(f.daemons) != 3 {
		t.Errorf("groups %v, %d daemons", sockets, len(f.daemons))
	}
	for socket, members := range sockets {
		if members > groupSize {
			t.Errorf("%d are in one group", members)
		}
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v", info, err)
		}
	}
	for i := range n {
		if f.groupOf(fmt.Sprint("c", i)) == "" {
			t.Errorf("c%d is in no group", i)
		}
	}
}

// TestDeadGroup: nobody joins a daemon that is lost, and nothing stays of it when its
// containers are settled.
func TestDeadGroup(t *testing.T) {
	f := newFake(t)
	first := f.mustJoin("c1")
	dead := f.kill("c1")
	if second := f.mustJoin("c2"); second == first {
		t.Error("it joined a group without a daemon")
	}
	if err := leave(f.folder(dead), "c1"); err != nil {
		t.Fatal(err)
	}
	f.mustJoin("c3")
	if left, _ := filepath.Glob(f.folder(dead) + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Lstat(first); !os.IsNotExist(err) {
		t.Errorf("its socket: %v", err)
	}
	if group := f.groupOf("c1"); group != "" {
		t.Errorf("c1 is in %s", group)
	}
}

// TestStuckGroup: nobody joins a daemon that listens and does not answer.
func TestStuckGroup(t *testing.T) {
	f := newFake(t)
	var stuck *os.File
	t.Cleanup(func() { _ = stuck.Close() })
	first, err := f.join("c1", func(_ string, listener *net.UnixListener) (err error) {
		stuck, err = listener.File()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if Answers(f.folder(f.groupOf("c1"))) {
		t.Error("it answers")
	}
	second := f.mustJoin("c2")
	if second == first {
		t.Error("it joined a group whose daemon is stuck")
	}
	if third := f.mustJoin("c3"); third != second {
		t.Error("it is not in the group whose daemon is well")
	}
}

// TestOtherMounts: nobody joins the group of a containerd that sees other mounts.
func TestOtherMounts(t *testing.T) {
	f := newFake(t)
	first := f.mustJoin("c1")
	group := f.groupOf("c1")
	_, rest, _ := strings.Cut(group, "-")
	other := "1-" + rest
	if err := os.Rename(f.folder(group), f.folder(other)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(first, f.socket(other)); err != nil {
		t.Fatal(err)
	}
	if lives, err := f.lives(other); !lives || err != nil {
		t.Fatalf("the group does not live, %v", err)
	}
	if second := f.mustJoin("c2"); second == f.socket(other) {
		t.Error("it joined another's group")
	}
}

// TestNoDaemon: a group whose daemon does not start leaves nothing.
func TestNoDaemon(t *testing.T) {
	f := newFake(t)
	broken := func(string, *net.UnixListener) error { return os.ErrPermission }
	if _, err := f.join("c1", broken); err == nil {
		t.Fatal("it joined")
	}
	if all, err := f.list(); err != nil || len(all) > 0 {
		t.Errorf("left: %v, %v", all, err)
	}
}

// TestOccupied: a group in which somebody is stays.
func TestOccupied(t *testing.T) {
	f := newFake(t)
	f.mustJoin("c1")
	group := f.groupOf("c1")
	if err := f.remove(group); err == nil {
		t.Error("it was removed")
	}
	if lives, err := f.lives(group); !lives || err != nil {
		t.Errorf("its socket has gone, %v", err)
	}
}

// TestSameFolder: groups are the same by whatever links their folder is reached.
func TestSameFolder(t *testing.T) {
	dir := t.TempDir()
	state, link := filepath.Join(dir, "state"), filepath.Join(dir, "link")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(state, link); err != nil {
		t.Fatal(err)
	}
	one, err := groupsIn(state)
	if err != nil {
		t.Fatal(err)
	}
	other, err := groupsIn(link)
	if err != nil || one.socket("g") != other.socket("g") {
		t.Errorf("%s and %s, %v", one.socket("g"), other.socket("g"), err)
	}
}

// TestParse: what containerd calls is understood, and what nobody should is refused.
func TestParse(t *testing.T) {
	c, err := parse([]string{"-namespace", "n", "-address", "/a.sock", "-publish-binary", "/usr/bin/containerd", "-id", "c1", "-bundle", "/b", "delete"})
	if want := (command{namespace: "n", address: "/a.sock", id: "c1", bundle: "/b", action: "delete"}); err != nil || c != want {
		t.Errorf("%+v, %v", c, err)
	}
	for _, args := range [][]string{
		{"-id", "../c1", "start"}, {"-id", "..", "delete"}, {"start"}, {"-id", "", "start"}, {"-unknown", "start"}, {"-id"},
	} {
		if c, err := parse(args); err == nil {
			t.Errorf("%v: %+v", args, c)
		}
	}
	var said strings.Builder
	if err := Main([]string{"-info"}, &said); err != nil || said.Len() > 0 {
		t.Errorf("%v, %q", err, &said)
	}
	if err := Main([]string{"-id", "c1", "dance"}, &said); err == nil || said.Len() > 0 {
		t.Errorf("%v, %q", err, &said)
	}
}

// TestNothingToRemove: it is no fault that there is nothing, as after a boot.
func TestNothingToRemove(t *testing.T) {
	state := t.TempDir()
	for _, state := range []string{state, filepath.Join(state, "none")} {
		if err := errors.Join(Remove(t.Context(), state, "n", filepath.Join(state, "bundle"), "c1"), Clear(state)); err != nil {
			t.Error(err)
		}
		if path := Member(state, "c1"); path != "" {
			t.Errorf("c1 is in %s", path)
		}
	}
}

// TestRuntimeOf: a runtime is found again, by what containerd's own shim writes too.
func TestRuntimeOf(t *testing.T) {
	bundle := t.TempDir()
	if r, err := runtimeOf(bundle, "n"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %+v, %v", r, err)
	}
	if err := (options{BinaryName: "/usr/bin/crun", Root: "/r"}).save(bundle); err != nil {
		t.Fatal(err)
	}
	if r, err := runtimeOf(bundle, "n"); err != nil || r != (runtime{"/usr/bin/crun", "/r/n"}) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, text := range []string{"", "{", "{}", `{"binary_name":"x"}`} {
		if err := os.WriteFile(filepath.Join(bundle, optionsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := runtimeOf(bundle, "n"); err == nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
}
