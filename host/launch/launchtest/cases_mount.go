package launchtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// Folder makes a folder that the workers of a bench may write, below one that they
// may not enter, with a file in it.
func (b *Bench) Folder() string {
	b.t.Helper()
	dir, err := filepath.EvalSymlinks(b.t.TempDir())
	b.must(err)
	dir = filepath.Join(dir, "closed")
	b.must(os.Mkdir(dir, 0o700))
	dir = filepath.Join(dir, "a folder: ü,#1=50%?")
	b.must(os.Mkdir(dir, 0o700))
	b.must(os.Chmod(dir, 0o777)) // past the umask
	b.must(os.WriteFile(filepath.Join(dir, "given"), []byte("given"), 0o644))
	return dir
}

// Mount is the folder as a worker is granted it, at /mnt/name.
func (b *Bench) Mount(name, dir string, readOnly bool) launch.Mount {
	b.t.Helper()
	f, folder, err := launch.OpenFolder(dir)
	b.must(err)
	b.must(f.Close())
	folder.ReadOnly = readOnly
	return launch.Mount{Place: "/mnt/" + name, Folder: folder}
}

// At is where the worker finds what it is shown.
func (g *Guest) At(place string) string {
	g.t.Helper()
	for at := range strings.SplitSeq(envOf(g.Report().Env, launch.EnvMounts), ":") {
		if name, path, _ := strings.Cut(at, "="); name == place {
			return path
		}
	}
	return place
}

// mountsAreShown: a worker reads and writes the folders that it was granted, by
// their own modes, wherever they lie.
func mountsAreShown(t *testing.T, b *Bench) {
	spec, one, other := b.Spec(), b.Folder(), b.Folder()
	spec.Mounts = []launch.Mount{b.Mount("one", one, false), b.Mount("other", other, false)}
	b.must(os.WriteFile(filepath.Join(one, "closed"), nil, 0o000))
	g := b.Start(spec)
	at := g.At("/mnt/one")
	for _, command := range []string{"read " + at, "read " + at + "/given", "write " + at + "/made", "write " + g.At("/mnt/other") + "/made"} {
		if got := g.Ask(command); got != "ok" {
			t.Errorf("%s: %s", command, got)
		}
	}
	for _, dir := range []string{one, other} {
		if text, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(text) != "written" {
			t.Errorf("it wrote %q, %v", text, err)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	for _, command := range []string{"read " + at + "/closed", "write " + at + "/given", "read " + filepath.Dir(one)} {
		if got := g.Ask(command); got == "ok" {
			t.Errorf("%s: %s", command, got)
		}
	}
}

// changedMountsAreRefused: whatever has taken a folder's place, no worker is
// started with it, and with the folder it is.
func changedMountsAreRefused(t *testing.T, b *Bench) {
	spec, dir, other := b.Spec(), b.Folder(), b.Folder()
	spec.Mounts = []launch.Mount{b.Mount("one", dir, true)}
	b.must(b.Launcher.Create(b.Context(), spec))
	g := &Guest{t: t, Spec: spec}
	aside := dir + " aside"
	for what, change := range map[string]func() error{
		"":                 func() error { return nil },
		"no such file":     func() error { return nil },
		"not a folder":     func() error { return os.WriteFile(dir, nil, 0o644) },
		"a link":           func() error { return os.Symlink(aside, dir) },
		"another folder":   func() error { return os.Rename(other, dir) },
		"another folder ":  func() error { return os.Mkdir(dir, 0o777) },
		"a link in its pa": func() error { return above(dir, aside) },
	} {
		if what != "" {
			b.must(os.Rename(dir, aside))
			b.must(change())
		}
		err := b.Launcher.Start(b.Context(), spec.Serial)
		if what == "" {
			b.must(err)
			g.AwaitUp()
			b.Stop(spec.Serial, patience)
			continue
		}
		if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), strings.TrimSpace(what)) || !strings.Contains(err.Error(), dir) || worker.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
		g.ExpectProcesses(0)
		if b.Running(spec.Serial) {
			t.Errorf("%s: it runs", what)
		}
		b.Stop(spec.Serial, 0)
		b.must(restored(dir, aside))
	}
	b.must(b.Launcher.Start(b.Context(), spec.Serial))
	g.AwaitUp()
}

// above puts the folder back, and a link in the place of the one above it.
func above(dir, aside string) error {
	closed := filepath.Dir(dir)
	return errors.Join(os.Rename(aside, dir), os.Rename(closed, closed+" aside"), os.Symlink(closed+" aside", closed))
}

// restored undoes what was done to the folder.
func restored(dir, aside string) error {
	if closed := filepath.Dir(dir); isLink(closed) {
		return errors.Join(os.Remove(closed), os.Rename(closed+" aside", closed))
	}
	return errors.Join(os.RemoveAll(dir), os.Rename(aside, dir))
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSymlink != 0
}
