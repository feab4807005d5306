package shim

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustOpen(t *testing.T, path string) *output {
	t.Helper()
	o, err := openOutput(path)
	if err != nil {
		t.Fatal(err)
	}
	go o.run()
	return o
}

func (o *output) mustEnd(t *testing.T) {
	t.Helper()
	_ = o.container.Close()
	select {
	case <-o.ended:
	case <-time.After(time.Minute):
		t.Fatal("the output does not end")
	}
}

// TestOutput: all that is printed is added to the file.
func TestOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := mustOpen(t, path)
	text := []byte(strings.Repeat("a line\n", 100_000))
	if _, err := o.container.Write(text); err != nil {
		t.Fatal(err)
	}
	o.mustEnd(t)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, append([]byte("before\n"), text...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestFullDisk: who prints is not held up while a disk is full, and what is printed
// when it is not any more is written.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount (root is needed): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := mustOpen(t, path)
	if _, err := o.container.Write(make([]byte, 8<<20)); err != nil { // more than the disk and the pipe hold
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := o.container.WriteString("later\n"); err != nil {
		t.Fatal(err)
	}
	o.mustEnd(t)
	if got, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(got), "later\n") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestFIFO: who reads one gets it all, and its end.
func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	o := mustOpen(t, path)
	if _, err := o.container.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	o.mustEnd(t)
	if got, err := io.ReadAll(reader); err != nil || string(got) != "hello\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestNoLog: an output goes to a file or a FIFO, and never through a link.
func TestNoLog(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, "/dev/null", filepath.Join(dir, "none")} {
		if o, err := openOutput(path); err == nil {
			o.close()
			t.Errorf("%s was opened", path)
		}
	}
}
