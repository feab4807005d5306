// Package report is what a test worker tells of itself: the words that it and
// launchtest share. Make and Syscalls run inside the worker.
package report

import (
	"net"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Report is how the world looks to the worker.
type Report struct {
	UID, GID    int
	Groups      []int
	Hostname    string
	Cwd         string
	Args        []string
	Env         []string
	Status      map[string]string // /proc/self/status
	Mounts      []string          // /proc/self/mountinfo
	Interfaces  []string
	Descriptors []string // what /proc/self/fd points to
	Processes   int      // how many it sees
	Umask       string
}

// Fork is the outcome of starting children.
type Fork struct {
	Started int
	Error   string
}

// Make reports on the calling process.
func Make() Report {
	r := Report{UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(), Status: map[string]string{}}
	r.Groups, _ = os.Getgroups()
	r.Hostname, _ = os.Hostname()
	r.Cwd, _ = os.Getwd()
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		r.Status[key] = strings.TrimSpace(value)
	}
	r.Umask = r.Status["Umask"]
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	r.Mounts = strings.Split(strings.TrimSpace(string(mounts)), "\n")
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		r.Interfaces = append(r.Interfaces, i.Name)
	}
	descriptors, _ := os.ReadDir("/proc/self/fd")
	for _, d := range descriptors {
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil {
			r.Descriptors = append(r.Descriptors, target)
		}
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if e.Name()[0] >= '0' && e.Name()[0] <= '9' {
			r.Processes++
		}
	}
	return r
}

// Syscalls tries what a cage must refuse and tells, by name, the error; "" is a
// success.
func Syscalls() map[string]string {
	socket := func(family, kind int) error {
		fd, err := unix.Socket(family, kind, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	tries := map[string]error{
		"mount":         unix.Mount("none", "/tmp", "tmpfs", 0, ""),
		"unshare":       unix.Unshare(unix.CLONE_NEWUSER),
		"setuid":        setuid(0),
		"mknod":         unix.Mknod("/worker/state/device", unix.S_IFBLK|0o600, 8<<8),
		"ptrace":        unix.PtraceAttach(os.Getppid()),
		"vm_readv":      readOther(),
		"packet socket": socket(unix.AF_PACKET, unix.SOCK_RAW),
		"vsock socket":  socket(unix.AF_VSOCK, unix.SOCK_STREAM),
		"alg socket":    socket(unix.AF_ALG, unix.SOCK_SEQPACKET),
		"unix socket":   socket(unix.AF_UNIX, unix.SOCK_STREAM),
		"inet socket":   socket(unix.AF_INET, unix.SOCK_STREAM),
		"inet6 socket":  socket(unix.AF_INET6, unix.SOCK_STREAM),
		"bpf":           plain(unix.SYS_BPF),
		"keyctl":        plain(unix.SYS_KEYCTL),
		"io_uring":      plain(unix.SYS_IO_URING_SETUP),
		"userfaultfd":   plain(unix.SYS_USERFAULTFD),
		"perf":          plain(unix.SYS_PERF_EVENT_OPEN),
	}
	out := make(map[string]string, len(tries))
	for name, err := range tries {
		out[name] = ""
		if err != nil {
			out[name] = err.Error()
		}
	}
	return out
}

func setuid(uid int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SETUID, uintptr(uid), 0, 0)
	return asError(errno)
}

func plain(number uintptr) error {
	_, _, errno := unix.RawSyscall6(number, 0, 0, 0, 0, 0, 0)
	return asError(errno)
}

// readOther reads a byte of its own memory the way a debugger would.
func readOther() error {
	var from, to byte
	local := []unix.Iovec{{Base: &to, Len: 1}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from)), Len: 1}}
	_, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	return err
}

func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
