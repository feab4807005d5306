package care

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

type brokenPipe struct{ left int }

func (b *brokenPipe) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("broken pipe")
	}
	return len(p), nil
}

// A backup that nobody takes leaves nothing, and neither does one that is called
// off.
func TestBackupThatFails(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.forge("nora")
	g.publish()
	for _, left := range []int{0, 700, 5000} {
		if _, err := Backup(t.Context(), g.source(passphrase), &brokenPipe{left}); err == nil {
			t.Error("a broken pipe took a backup")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Backup(ctx, g.source(passphrase), &brokenPipe{1 << 30}); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	if left, _ := filepath.Glob(g.at(spoolForm + "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSweepBackups(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{spoolForm + "1/2", "keys"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := SweepBackups(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "keys" {
		t.Errorf("%v, %v", entries, err)
	}
}
