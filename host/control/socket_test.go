package control_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

func TestSocket(t *testing.T) {
	old := unix.Umask(0) // as loose as it gets
	defer unix.Umask(old)
	dir := filepath.Join(privateDir(t), strings.Repeat("long/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "host.sock")
	// A dead host's socket stays behind; the next host takes its place.
	stale, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if err := errors.Join(unix.Bind(stale, &unix.SockaddrUnix{Name: "host.sock"}), unix.Close(stale)); err != nil {
		t.Fatal(err)
	}
	s := serve(t, &backend{status: func() (control.Status, error) { return control.Status{HostID: "h"}, nil }}, socket)
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info.Mode(), err)
	}
	got, err := dial(t, socket).GetStatus(t.Context(), &hostv1.GetStatusRequest{})
	if err != nil || got.GetHostId() != "h" || int(got.GetPid()) != os.Getpid() {
		t.Fatalf("status %v, %v", got, err)
	}
	s.stop()
	awaitGone(t, socket)
}

func TestSocketRefused(t *testing.T) {
	open := privateDir(t)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(privateDir(t), "host.sock")
	if err := os.WriteFile(taken, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(open, "host.sock"): worker.ErrInvalid,
		taken:                            worker.ErrConflict,
		filepath.Join(open, "missing", "host.sock"):  os.ErrNotExist,
		filepath.Join(taken, "host.sock"):            unix.ENOTDIR,
		filepath.Join(privateDir(t), longName(t)):    unix.EINVAL,
		filepath.Join(privateDir(t), "x\x00y", "in"): unix.EINVAL,
	} {
		if _, err := control.New(control.Config{Socket: path}); !errors.Is(err, want) {
			t.Errorf("New on %s: %v, want %v", path, err, want)
		}
	}
	if data, err := os.ReadFile(taken); string(data) != "mine" {
		t.Errorf("a file in the way was touched: %v", err)
	}
}

func longName(t *testing.T) string {
	t.Helper()
	return strings.Repeat("s", 200)
}

// TestStranger connects as another user through a socket that was opened to all.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test takes another user's identity: run it as root")
	}
	dir := privateDir(t)
	s := serve(t, &backend{}, filepath.Join(dir, "s"))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(s.socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its identity
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			refused <- errno
			return
		}
		refused <- func() error {
			conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/s", fd))
			if err != nil {
				return fmt.Errorf("the stranger did not reach the socket: %w", err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("read %d bytes, %w: the stranger was let in", n, err)
			}
			return nil
		}()
	}()
	if err := <-refused; err != nil {
		t.Fatal(err)
	}
	if got := s.log.String(); !strings.Contains(got, "connection refused") || !strings.Contains(got, "uid=65534") {
		t.Fatalf("log: %s", got)
	}
}
