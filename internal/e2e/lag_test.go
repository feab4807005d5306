package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
)

// TestRecordLags: where the record's files cannot follow the registry, in number
// or in time, nothing is taken on that would have to be recorded; once they can,
// the host heals by itself. Only they are held up: the registry's disk is sound.
func TestRecordLags(t *testing.T) {
	for name, behind := range map[string]struct {
		entries int
		since   time.Duration
		says    string
	}{
		"in number": {100_001, 0, "entries"},
		"in time":   {3, 2 * time.Minute, "2m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hostOn(t, "", "process")
			h.forge("nora", "template")
			h.mustSend("nora", "template.echo", map[string]string{"message": "before"})
			h.eventually("the checkpoint covers all", h.published)
			h.kill()
			published := h.checkpoint()
			h.addEntries(behind.entries, time.Now().Add(-behind.since))
			release := holdRecord(h)
			h.start()
			h.refuses()
			if said := strings.Join(h.degraded(), "\n"); !strings.Contains(said, "record: ") || !strings.Contains(said, behind.says) {
				t.Errorf("it says: %s", said)
			}
			if now := h.checkpoint(); now != published {
				t.Errorf("the record went on: %s, was %s", now, published)
			}
			release()
			h.heals()
			h.down()
		})
	}
}

// checkpoint is what the record's checkpoint says.
func (h *host) checkpoint() string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.dir, "record", "checkpoint"))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// addEntries commits entries to the registry of a host that does not run, as of a
// time in the past.
func (h *host) addEntries(n int, at time.Time) {
	h.t.Helper()
	r, err := registry.Open(h.t.Context(), registry.Config{Path: filepath.Join(h.dir, "registry.db")})
	if err != nil {
		h.t.Fatal(err)
	}
	for added := 0; added < n && err == nil; {
		err = r.Update(h.t.Context(), func(tx *registry.Tx) error {
			for range min(n-added, 1000) {
				line, err := record.Entry{At: at, Kind: record.Refused, Refusal: &record.RefusalFields{Code: "kind_unknown", Reason: fmt.Sprint(added)}}.Encode()
				if err != nil {
					return err
				}
				if _, err := tx.AppendPast(line, at); err != nil {
					return err
				}
				added++
			}
			return nil
		})
	}
	if closing := r.Close(); err != nil || closing != nil {
		h.t.Fatal(err, closing)
	}
}

// holdRecord puts the record's files on a file system with room for no other,
// until release is called. The host must be down when the test ends.
func holdRecord(h *host) (release func()) {
	h.t.Helper()
	dir := filepath.Join(h.dir, "record")
	inodes, aside := 0, filepath.Join(h.t.TempDir(), "record")
	err := filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { inodes++; return nil })
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.CopyFS(aside, os.DirFS(dir)); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Mount("full", dir, "tmpfs", 0, fmt.Sprintf("mode=0700,nr_inodes=%d", inodes)); err != nil {
		h.t.Fatalf("mount a file system (root is needed): %v", err)
	}
	h.t.Cleanup(func() {
		h.down()
		if err := unix.Unmount(dir, 0); err != nil {
			h.t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	if err := os.CopyFS(dir, os.DirFS(aside)); err != nil {
		h.t.Fatal(err)
	}
	return func() {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "nr_inodes=100000"); err != nil {
			h.t.Error(err)
		}
	}
}
