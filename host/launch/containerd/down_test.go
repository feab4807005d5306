package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// TestDownSparesMounts: what an operator has mounted below our folder stays
// mounted and keeps its files, and the launcher stays up.
func TestDownSparesMounts(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	point := filepath.Join(launcher(b).dir(), "mine and\\040yours")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", point, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	file := filepath.Join(point, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Launcher.Down(b.Context()); !errors.Is(err, worker.ErrConflict) || worker.HintOf(err) == "" {
		t.Errorf("went down: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "kept" {
		t.Errorf("the operator's file: %q, %v", text, err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	b.Guest()
}
