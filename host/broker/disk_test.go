package broker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/registry"
)

// disk is a small file system of its own that can run full.
type disk struct {
	t       *testing.T
	dir     string
	ballast *os.File
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, dir: t.TempDir()}
	if err := unix.Mount("small", d.dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mount small file system (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

func (d *disk) fill() {
	d.t.Helper()
	var err error
	if d.ballast, err = os.Create(filepath.Join(d.dir, "ballast")); err != nil {
		d.t.Fatal(err)
	}
	for err == nil {
		_, err = d.ballast.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		d.t.Fatal(err)
	}
}

func (d *disk) free() {
	d.t.Helper()
	if err := errors.Join(d.ballast.Truncate(0), d.ballast.Close()); err != nil {
		d.t.Fatal(err)
	}
}

// grow takes up what the registry's files have in reserve.
func grow(tx *registry.Tx) error { return tx.SetMeta("ballast", string(make([]byte, 20_000))) }
