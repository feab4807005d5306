package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// TestState: what is known of containers is kept in memory, root's alone, is found
// again when containerd dies, and goes with the rest.
func TestState(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	g := b.Guest()
	p := own(b)
	if p.memory() == "" {
		t.Fatal("this machine has no tmpfs at /run or /dev/shm with half a GiB")
	}
	for _, link := range p.stateLinks() {
		target, err := os.Readlink(link)
		if err != nil || filepath.Dir(target) != p.memory() {
			t.Fatalf("%s leads to %q, %v", link, target, err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(link, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
			t.Errorf("%s is on a file system of type %#x, %v", link, fs.Type, err)
		}
		if entries, err := os.ReadDir(link); err != nil || len(entries) == 0 {
			t.Errorf("%s has nothing in it: %v", link, err)
		}
	}
	kill(t, containerdPID(t, b))
	launchtest.Eventually(t, "containerd is back, and knows the worker", func() bool {
		list, err := b.Launcher.List(b.Context())
		return err == nil && len(list) == 1 && list[0].Running
	})
	g.Tell("ping")
}

// TestMakeState: the folders are made anew where they are lost, stay where they
// are, and are not made where they could be somebody else's.
func TestMakeState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := &private{site: &site{dir: dir, namespace: "dals-test-state", state: filepath.Join(dir, "state")}}
	made := func() {
		t.Helper()
		if err := p.makeState(); err != nil {
			t.Fatal(err)
		}
	}
	made()
	memory := p.memory()
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	if err := os.RemoveAll(memory); err != nil {
		t.Fatal(err)
	}
	made()
	for _, link := range p.stateLinks() {
		if target, err := os.Readlink(link); err != nil || !strings.HasPrefix(target, memory+"/") {
			t.Errorf("%s leads to %q, %v", link, target, err)
		}
		if err := os.WriteFile(filepath.Join(link, "file"), nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	if err := p.removeState(); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(p.stateLinks(), memory) {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	made()
	if err := os.Chown(memory, 1, 1); err != nil {
		t.Fatal(err)
	}
	made()
	for _, link := range p.stateLinks() {
		if _, err := os.Lstat(link); !os.IsNotExist(err) {
			t.Errorf("%s still leads to somebody's folder: %v", link, err)
		}
		if err := os.Mkdir(link, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(memory, 0, 0); err != nil {
		t.Fatal(err)
	}
	made()
	for _, link := range p.stateLinks() {
		if info, err := os.Lstat(link); err != nil || !info.IsDir() {
			t.Errorf("a folder that was there has gone: %v, %v", info, err)
		}
	}
}
