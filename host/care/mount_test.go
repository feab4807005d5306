package care

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// mountOn puts a small file system, or another folder, onto dir until the test
// ends.
func mountOn(t *testing.T, dir, of string) {
	t.Helper()
	kind, flags := "tmpfs", uintptr(0)
	if of != "" {
		kind, flags = "", unix.MS_BIND
	}
	if err := unix.Mount(of, dir, kind, flags, ""); err != nil {
		t.Fatalf("mount (root is needed): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// A data folder that is a mount cannot be exchanged for another: that is said
// before anything is done, and a folder below it is as good.
func TestRestoreIntoAMount(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	data, _ := g.backup(passphrase)
	for name, of := range map[string]string{"a file system": "", "a folder": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			dir := filepath.Join(parent, "data")
			g := &rig{t: t}
			g.must(os.Mkdir(dir, 0o700))
			mountOn(t, dir, of)
			before := contents(t, parent)
			_, err := restore(t, data, dir, nil)
			if !errors.Is(err, worker.ErrRefused) || !strings.Contains(err.Error(), "is a mount of its own") || !strings.Contains(worker.HintOf(err), "--data-dir "+dir+"/") {
				t.Errorf("%v, hint %q", err, worker.HintOf(err))
			}
			if diff := cmp.Diff(before, contents(t, parent)); diff != "" {
				t.Errorf("changed:\n%s", diff)
			}
			below := filepath.Join(dir, "host")
			g.must(os.Mkdir(below, 0o700))
			restored, err := restore(t, data, below, nil)
			g.must(err)
			if restored.Workers != 1 {
				t.Errorf("restored %+v", restored)
			}
		})
	}
}

// A recovery works inside the folder: nothing is other where that is a mount, as
// long as it is one.
func TestRecoverOnAMount(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.fill()
	want := read(t, g.registry)
	g.close()
	dir := t.TempDir()
	mountOn(t, dir, "")
	on := *g
	on.t, on.dir = t, dir
	g.must(os.CopyFS(dir, os.DirFS(g.dir)))
	on.damage(t, damages["truncated"])
	found, err := on.recover(nil)
	g.must(err)
	r, err := registry.Open(t.Context(), registry.Config{Path: on.at("registry.db")})
	g.must(err)
	defer r.Close()
	if diff := cmp.Diff(want, read(t, r)); diff != "" || !found.Rebuilt {
		t.Errorf("%+v (-want +got):\n%s", found, diff)
	}
}
