package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

func (h *host) forgeMounted(name string, mounts ...string) (client.Worker, error) {
	h.t.Helper()
	made, err := h.client.Forge(h.t.Context(), client.ForgeRequest{Name: name, Type: "wanderer", ClassCode: "A1", Mounts: mounts})
	return made.Worker, err
}

// album is a folder of the operator's: below one that no worker may enter, with a
// file that all may read.
func album(t *testing.T, name string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(dir, "closed")
	dir = filepath.Join(closed, name)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o777), os.WriteFile(filepath.Join(dir, "given"), []byte(name), 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// take has the worker pics read the file that it was given.
func (h *host) take(place string) (string, error) {
	h.t.Helper()
	said, err := h.send("pics", "wanderer.take", map[string]any{"place": place, "name": "given"})
	return string(said.Result), err
}

// put has it write one.
func (h *host) put(place, name string) error {
	h.t.Helper()
	_, err := h.send("pics", "wanderer.put", map[string]any{"place": place, "name": name, "text": "put"})
	return err
}

// TestMount: a worker reads and writes the folder that it was granted, over hosts
// and restarts, and its check of itself does not look into it.
func TestMount(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		newOutpost(t, h)
		dir := album(t, "an album")
		w, err := h.forgeMounted("pics", dir+":/mnt/photos", dir+":/mnt/fixed:ro")
		if err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		if len(w.Grants) != 2 || !strings.HasPrefix(w.Grants[0], "mount:/mnt/fixed="+strings.ReplaceAll(dir, " ", "%20")+":ro#") {
			t.Errorf("granted %q", w.Grants)
		}
		if slices.Contains(w.NotGranted, "mount:/mnt/photos") || !slices.Contains(w.NotGranted, "mount:/mnt/inbox") {
			t.Errorf("not granted %q", w.NotGranted)
		}
		for range 2 {
			if text, err := h.take("/mnt/photos"); err != nil || !strings.Contains(text, "an album") {
				t.Errorf("took %s, %v", text, err)
			}
			if err := h.put("/mnt/photos", "made"); err != nil {
				t.Error(err)
			}
			if err := h.put("/mnt/fixed", "made too"); (err == nil) != (h.launcher == "process") { // which isolates nothing
				t.Errorf("wrote where it may only read: %v", err)
			}
			if text, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(text) != "put" {
				t.Errorf("it made %q, %v", text, err)
			}
			h.kill()
			h.start()
			h.eventually("worker found again", func() error {
				if got := h.worker("pics"); got.Heartbeat.Last.IsZero() || got.Restarts > 0 {
					return fmt.Errorf("%+v", got)
				}
				return nil
			})
		}
		if _, err := h.take("/mnt/inbox"); err == nil || !strings.Contains(err.Error(), "not_granted") {
			t.Errorf("what was not granted: %v", err)
		}
		if text, said, code := h.run("verify", "pics"); code != 0 {
			t.Errorf("verify: %s %s", text, said)
		}
		if text, _, _ := h.run("worker", "pics"); !strings.Contains(text, w.Grants[1]) {
			t.Errorf("worker says\n%s", text)
		}
		forged := h.entriesOf(w.WorkerSerial, record.Forge)
		if len(forged) != 1 || !slices.Equal(forged[0].Worker.Grants, w.Grants) {
			t.Errorf("%+v", forged)
		}
		if _, err := h.client.Retire(t.Context(), "pics", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "given")); err != nil {
			t.Errorf("after it was retired: %v", err)
		}
	})
}

// TestMountReplaced: no worker is started with a folder that has taken the place of
// the one it was granted; the operator grants it, or brings the other back.
func TestMountReplaced(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		newOutpost(t, h)
		if _, err := h.forgeMounted("thief", h.dir+":/mnt/photos"); err == nil || !strings.Contains(err.Error(), "no worker may have") {
			t.Errorf("the host's own folder: %v", err)
		}
		dir := album(t, "album")
		if _, err := h.forgeMounted("pics", dir+":/mnt/photos"); err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		if _, err := h.client.Stop(t.Context(), "pics", 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(dir, dir+" aside"), os.Symlink("/etc", dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := h.client.Start(t.Context(), "pics", 0); err == nil || !strings.Contains(err.Error(), "a link in its path") {
			t.Errorf("a link: %v", err)
		}
		if got := h.worker("pics"); got.State != "stopped" {
			t.Errorf("it is %s: %s", got.State, got.StateReason)
		}
		if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "given"), []byte("other"), 0o644)); err != nil {
			t.Fatal(err)
		}
		_, said, code := h.run("start", "pics")
		if code != 1 || !strings.Contains(said, "another folder than was granted") || !strings.Contains(said, "\nhint: bring back the folder") {
			t.Errorf("another folder: %d %s", code, said)
		}
		if _, err := h.client.Upgrade(t.Context(), client.UpgradeRequest{Worker: "pics", Mounts: []string{dir + ":/mnt/photos:ro"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.client.Start(t.Context(), "pics", 0); err != nil {
			t.Fatal(err)
		}
		if text, err := h.take("/mnt/photos"); err != nil || !strings.Contains(text, "other") {
			t.Errorf("took %s, %v", text, err)
		}
	})
}

// TestMountComesBack: a worker that died while its folder was away runs again when
// that is back, and not before.
func TestMountComesBack(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		newOutpost(t, h)
		dir := album(t, "album")
		w, err := h.forgeMounted("pics", dir+":/mnt/photos:ro")
		if err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		if err := errors.Join(os.Rename(dir, dir+" aside"), os.Mkdir(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		if text, err := h.take("/mnt/photos"); err != nil || !strings.Contains(text, "album") {
			t.Errorf("while it runs: %s, %v", text, err)
		}
		h.signal(w.WorkerSerial, syscall.SIGKILL)
		h.eventually("it is refused", func() error {
			if text := h.log.String(); !strings.Contains(text, "worker did not come back") || !strings.Contains(text, "another folder than was granted") {
				return errors.New("not yet")
			}
			return nil
		})
		if got := h.worker("pics"); got.State != "restarting" {
			t.Errorf("it is %s", got.State)
		}
		if err := errors.Join(os.Remove(dir), os.Rename(dir+" aside", dir)); err != nil {
			t.Fatal(err)
		}
		h.eventually("it runs again", func() error {
			if got := h.worker("pics"); got.State != "live" || got.Restarts != 1 {
				return fmt.Errorf("%s, %d restarts", got.State, got.Restarts)
			}
			return nil
		})
		if text, err := h.take("/mnt/photos"); err != nil || !strings.Contains(text, "album") {
			t.Errorf("took %s, %v", text, err)
		}
	})
}

// TestMountRestored: a worker of a host that was restored, or recovered, has the folder
// that it was granted, and no other that is in its place.
func TestMountRestored(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		newOutpost(t, h)
		dir := album(t, "album")
		w, err := h.forgeMounted("pics", dir+":/mnt/photos")
		if err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		plugins, err := filepath.Glob(filepath.Join(h.dir, "plugins", "dals-worker-wanderer*"))
		if err != nil || len(plugins) != 1 {
			t.Fatal(plugins, err)
		}
		binary, readErr := os.ReadFile(plugins[0]) // which a backup does not have
		pass, file := filepath.Join(t.TempDir(), "pass"), filepath.Join(t.TempDir(), "host.backup")
		if err := errors.Join(readErr, os.WriteFile(pass, []byte("correct horse\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		h.mustRun("backup", file, "--passphrase-file", pass)
		h.lose()
		h.mustRun("restore", file, "--passphrase-file", pass)
		h.start()
		h.awaitAlive(w)

		h.eventually("the checkpoint covers all", h.published)
		h.kill()
		h.fold()
		if err := os.Truncate(filepath.Join(h.dir, "registry.db"), 0); err != nil {
			t.Fatal(err)
		}
		h.mustRun("recover")
		h.start()
		h.awaitAlive(w)

		h.lose()
		if err := errors.Join(os.Rename(dir, dir+" aside"), os.Mkdir(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		h.mustRun("restore", file, "--passphrase-file", pass)
		h.start()
		h.eventually("it is not started with another folder", func() error {
			if text := h.log.String(); !strings.Contains(text, "another folder than was granted") {
				return errors.New("not yet")
			}
			return nil
		})
		if err := os.WriteFile(plugins[0], binary, 0o755); err != nil {
			t.Fatal(err)
		}
		h.eventually("it gets the folder where it is now", func() error {
			_, err := h.client.Upgrade(t.Context(), client.UpgradeRequest{Worker: "pics", Mounts: []string{dir + " aside:/mnt/photos"}})
			return err
		})
		h.awaitAlive(w)
		h.eventually("it has its folder", func() error { // once the host takes envelopes
			if text, err := h.take("/mnt/photos"); err != nil || !strings.Contains(text, "album") {
				return fmt.Errorf("took %s, %w", text, err)
			}
			return nil
		})
	})
}

// awaitAlive waits until this host has heard of a worker, which starts with the folder
// that it was granted or not at all.
func (h *host) awaitAlive(w client.Worker) {
	h.t.Helper()
	h.eventually("it lives", func() error {
		if got := h.worker(w.WorkerName); got.WorkerSerial != w.WorkerSerial || got.State != "live" || got.Heartbeat.Last.IsZero() || len(got.Grants) != 1 {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
}

// mustRun runs a command that has to succeed.
func (h *host) mustRun(args ...string) {
	h.t.Helper()
	if _, stderr, code := h.run(args...); code != 0 {
		h.t.Fatalf("%v: exit %d: %s", args, code, stderr)
	}
}
