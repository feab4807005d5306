package forge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

const (
	photos = "mount:/mnt/photos"
	inbox  = "mount:/mnt/inbox"
)

// folder makes a folder of the operator's.
func folder(t *testing.T, name string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err == nil {
		dir = filepath.Join(dir, name)
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// ofPhotos is the grant of a folder at the place of photos.
func ofPhotos(t *testing.T, dir string, readOnly bool) string {
	t.Helper()
	f, found, err := launch.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	found.ReadOnly = readOnly
	c, err := capability.ParseAsked(photos)
	if err != nil {
		t.Fatal(err)
	}
	c.Folder = found
	return c.String()
}

func mounting(mounts ...string) Request {
	r := nora
	r.Mounts = mounts
	return r
}

// TestMounts: a folder that is granted is in the row, the plan and its hash, the
// manifest and the record: the one that links have led to.
func TestMounts(t *testing.T) {
	r := newRig(t)
	r.asks = []string{photos, toA, inbox}
	dir := folder(t, "Fotos: Köln #1")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	request := mounting(link + ":/mnt/photos:ro")
	request.Grants = []string{toA}
	want := []string{toA, ofPhotos(t, dir, true)}
	plan, err := r.forge.Plan(t.Context(), request)
	if err != nil || !slices.Equal(plan.Worker.Grants, want) || !slices.Equal(plan.Manifest.Grants, want) || !slices.Equal(plan.NotGranted, []string{inbox}) {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	if !strings.Contains(fmt.Sprint(plan.Steps), want[1]) {
		t.Errorf("plan says %v", plan.Steps)
	}
	writable := request
	writable.Mounts, writable.PlanHash = []string{link + ":/mnt/photos"}, plan.Hash
	if _, err := r.forge.Forge(t.Context(), writable); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "grants is now") {
		t.Errorf("held to another plan: %v", err)
	}
	made, err := r.forge.Forge(t.Context(), held(request, plan.Hash))
	if err != nil {
		t.Fatal(err)
	}
	if w, err := r.registry.Worker(t.Context(), made.Worker.Serial); err != nil || !slices.Equal(w.Grants, want) {
		t.Errorf("row %q, %v", w.Grants, err)
	}
	entries := r.entries()
	if last := entries[len(entries)-1]; last.Kind != record.Forge || !slices.Equal(last.Worker.Grants, want) {
		t.Errorf("entry %+v", last)
	}
	again, err := r.forge.Forge(t.Context(), request)
	if err != nil || !again.Existed {
		t.Errorf("again: %+v, %v", again, err)
	}
	for _, other := range []Request{granting(toA), mounting(dir + ":/mnt/photos"), mounting(folder(t, "x") + ":/mnt/photos:ro")} {
		other.Grants = []string{toA}
		if _, err := r.forge.Forge(t.Context(), other); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "grants is "+want[0]) {
			t.Errorf("%q: %v", other.Mounts, err)
		}
	}
}

// TestRefusedMounts: what no worker may have is refused by whatever path, and makes
// nothing.
func TestRefusedMounts(t *testing.T) {
	r := newRig(t)
	r.asks = []string{photos, inbox}
	dir := folder(t, "fine")
	proc := folder(t, "proc")
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(proc, unix.MNT_DETACH) })
	alias := folder(t, "alias")
	if err := unix.Mount(r.dir, alias, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(alias, unix.MNT_DETACH) })
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Symlink("/etc", link), os.Mkdir(filepath.Join(r.dir, "some"), 0o755)); err != nil {
		t.Fatal(err)
	}
	lair, quiet := folder(t, "lair"), folder(t, "quiet")
	if err := errors.Join(unix.Mknod(filepath.Join(lair, "pipe"), unix.S_IFIFO, 0), os.Chmod(filepath.Join(lair, "pipe"), 0o622),
		unix.Mknod(filepath.Join(quiet, "socket"), unix.S_IFSOCK, 0), os.Chmod(filepath.Join(quiet, "socket"), 0o660)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.forge.Plan(t.Context(), mounting(quiet+":/mnt/photos")); err != nil {
		t.Errorf("a socket that a worker may not use: %v", err)
	}
	for mount, says := range map[string]string{
		lair + ":/mnt/photos":                        `"pipe" in it is a socket or a pipe`,
		dir:                                          "SOURCE:/mnt/NAME",
		dir + ":ro":                                  "SOURCE:/mnt/NAME",
		dir + ":/mnt/photos:rw":                      "/mnt/NAME",
		dir + ":photos":                              "/mnt/NAME",
		dir + ":/worker/certs":                       "/mnt/NAME",
		dir + ":/mnt/../worker":                      "/mnt/NAME",
		dir + ":/mnt/a/b":                            "/mnt/NAME",
		dir + ":/mnt/other":                          "does not ask for it",
		"srv:/mnt/photos":                            "not an absolute path",
		dir + "/../fine:/mnt/photos":                 "write the folder as " + dir,
		dir + "\n:/mnt/photos":                       "one line",
		dir + "/none:/mnt/photos":                    "no such file",
		file + ":/mnt/photos":                        "not a folder",
		link + ":/mnt/photos":                        "lies in, /etc",
		"/:/mnt/photos":                              "lies in it",
		"/proc/self:/mnt/photos":                     "kernel's",
		"/sys:/mnt/photos":                           "kernel's",
		proc + ":/mnt/photos":                        "kernel's",
		"/dev:/mnt/photos":                           "lies in, /dev",
		"/dev/shm:/mnt/photos":                       "lies in, /dev",
		"/run:/mnt/photos":                           "lies in, /run",
		r.dir + ":/mnt/photos":                       "lies in, " + r.dir,
		r.dir + "/some:/mnt/photos":                  "lies in, " + r.dir,
		filepath.Dir(r.dir) + ":/mnt/photos":         r.dir + " lies in it",
		alias + ":/mnt/photos":                       "lies in, " + r.dir,
		alias + "/some:/mnt/photos":                  "lies in, " + r.dir,
		filepath.Dir(alias) + ":/mnt/photos:":        "/mnt/NAME",
		strings.Repeat("/long", 60) + ":/mnt/photos": "no such file",
	} {
		for what, err := range map[string]error{"plan": second(r.forge.Plan(t.Context(), mounting(mount))), "forge": second(r.forge.Forge(t.Context(), mounting(mount)))} {
			if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), says) || worker.HintOf(err) == "" {
				t.Errorf("%s %s: %v (%s)", what, mount, err, worker.HintOf(err))
			}
		}
	}
	if _, err := r.forge.Forge(t.Context(), mounting(dir+":/mnt/photos", link+":/mnt/photos")); !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), "two folders") {
		t.Errorf("two at one place: %v", err)
	}
	// Only by a mount is a folder granted: nobody says which by himself.
	for _, grant := range []string{photos, ofPhotos(t, "/etc", false), ofPhotos(t, dir, false)} {
		if _, err := r.forge.Forge(t.Context(), granting(grant)); !errors.Is(err, worker.ErrInvalid) || !strings.Contains(worker.HintOf(err), "--mount") {
			t.Errorf("%s: %v", grant, err)
		}
	}
	if rows, err := r.registry.WorkerByName(t.Context(), nora.Name); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("made %+v, %v", rows, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestMountsLike: folders and other grants are taken over apart, and a folder only
// while it is the one that was granted.
func TestMountsLike(t *testing.T) {
	r := newRig(t)
	r.asks = []string{photos, toA, toB}
	dir, other := folder(t, "one"), folder(t, "other")
	request := mounting(dir + ":/mnt/photos")
	request.Grants = []string{toA}
	if _, err := r.forge.Forge(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ grants, mounts, want []string }{
		"as-it-is":     {nil, nil, []string{toA, ofPhotos(t, dir, false)}},
		"other-grant":  {[]string{toB}, nil, []string{toB, ofPhotos(t, dir, false)}},
		"other-folder": {nil, []string{other + ":/mnt/photos:ro"}, []string{toA, ofPhotos(t, other, true)}},
	} {
		made, err := r.forge.Forge(t.Context(), Request{Name: name, Like: "nora", Grants: c.grants, Mounts: c.mounts})
		if err != nil || !slices.Equal(made.Worker.Grants, c.want) {
			t.Errorf("%s: %q, %v", name, made.Worker.Grants, err)
		}
	}
	if err := errors.Join(os.Remove(dir), os.Rename(other, dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.forge.Forge(t.Context(), Request{Name: "late", Like: "nora"}); !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), "another folder") {
		t.Errorf("another folder: %v", err)
	}
}

// TestUpgradeMounts: an upgrade takes along what its version asks for, refuses
// before it ends anything if that is not there, and is the way to grant another
// folder.
func TestUpgradeMounts(t *testing.T) {
	r := newRig(t)
	r.asks = []string{photos, inbox}
	dir, other := folder(t, "one"), folder(t, "other")
	made, err := r.forge.Forge(t.Context(), mounting(dir+":/mnt/photos", dir+":/mnt/inbox"))
	if err != nil {
		t.Fatal(err)
	}
	serial := made.Worker.Serial
	r.others = map[string]string{"1.3.0": strings.Repeat("ab", 32)}
	r.asks = []string{photos}
	w, _, err := r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.3.0"})
	if err != nil || !slices.Equal(w.Grants, []string{ofPhotos(t, dir, false)}) {
		t.Fatalf("asks for less: %q, %v", w.Grants, err)
	}
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755), os.Remove(dir)); err != nil {
		t.Fatal(err)
	}
	starts := len(r.entries())
	if _, _, err := r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.3.0", Config: []byte(`{"greeting":"ahoy"}`)}); !errors.Is(err, worker.ErrInvalid) || !strings.Contains(worker.HintOf(err), "upgrade") {
		t.Errorf("with a folder that is gone: %v", err)
	}
	if w := r.row(serial); w.State != worker.StateLive || len(r.entries()) != starts {
		t.Errorf("it is %s", w.State)
	}
	if _, _, err := r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.3.0", Mounts: []string{other + ":/mnt/inbox"}}); !errors.Is(err, worker.ErrInvalid) || !strings.Contains(err.Error(), "does not ask") {
		t.Errorf("what it does not ask for: %v", err)
	}
	for range 2 { // the second has nothing to do
		w, _, err = r.forge.Upgrade(t.Context(), serial, UpgradeRequest{Version: "1.3.0", Mounts: []string{other + ":/mnt/photos:ro"}})
		if err != nil || !slices.Equal(w.Grants, []string{ofPhotos(t, other, true)}) {
			t.Fatalf("another folder: %q, %v", w.Grants, err)
		}
	}
	upgrades := 0
	for _, e := range r.entries() {
		if e.Kind == record.Upgrade {
			upgrades++
		}
	}
	if upgrades != 2 {
		t.Errorf("%d upgrades", upgrades)
	}
}
