package shim

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRelease: only a process that waits to read is let go.
func TestRelease(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		wait int // how its first process has the FIFO open; -1 for not at all
		want bool
	}{
		"waits as crun's does":    {unix.O_RDONLY, true},
		"has ended, or is runc's": {-1, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := runtime{binary: "/nowhere", root: t.TempDir()}
			fifo := filepath.Join(r.root, "c", execFIFO)
			if err := os.Mkdir(filepath.Dir(fifo), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			var first int
			if c.wait >= 0 {
				var err error
				if first, err = unix.Open(fifo, c.wait|unix.O_NONBLOCK, 0); err != nil {
					t.Fatal(err)
				}
				defer unix.Close(first)
			}
			got, err := r.release("c")
			if got != c.want || err != nil {
				t.Fatalf("released: %t, %v", got, err)
			}
			_, err = os.Lstat(fifo)
			if os.IsNotExist(err) != c.want {
				t.Errorf("the FIFO: %v", err)
			}
			if n, err := unix.Read(first, make([]byte, 2)); c.want && (n != 1 || err != nil) {
				t.Errorf("it got %d bytes, %v", n, err)
			}
		})
	}
}

// TestHookless: what may have hooks is started by its runtime.
func TestHookless(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string]bool{
		`{"process": {}}`:              true,
		``:                             false,
		`{"hooks": {"poststart": []}}`: false,
		`{"process": `:                 false,
	} {
		bundle := t.TempDir()
		if spec != "" {
			if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := hookless(bundle); got != want {
			t.Errorf("hookless with spec %q: %t", spec, got)
		}
	}
}
