package catalog

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where seccomp_data has its parts, and how a call of x32 is told from a native one.
const (
	numberAt = 0
	archAt   = 4
	familyAt = 16 // the low half of the first argument: all machines of ours have it first
	x32      = 0x4000_0000
)

// socketless takes all sockets but unix and netlink from the calling thread and the
// processes that it starts. Landlock takes TCP alone, by which it does not mean
// MPTCP, and a host that is not root has no network namespace to give. It cannot be
// taken back. The thread must have no_new_privs.
func socketless() error {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("refuse sockets: no filter for %s", runtime.GOARCH)
	}
	filter := socketFilter(arch)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program))) //nolint:gosec // the kernel copies it
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("refuse sockets: %w", errno)
	}
	return nil
}

// socketFilter is a program for the kernel. Calls of other architectures, which have
// other numbers, are refused, and so is io_uring, by which sockets are made, too.
func socketFilter(arch uint32) []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equals = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: load, K: archAt},
		{Code: equals, K: arch, Jf: 8}, // refuse
		{Code: load, K: numberAt},
		{Code: least, K: x32, Jt: 6},                      // refuse
		{Code: equals, K: unix.SYS_IO_URING_SETUP, Jt: 5}, // refuse
		{Code: equals, K: unix.SYS_SOCKET, Jf: 3},         // allow
		{Code: load, K: familyAt},
		{Code: equals, K: unix.AF_UNIX, Jt: 1},    // allow
		{Code: equals, K: unix.AF_NETLINK, Jf: 1}, // refuse
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)},
	}
}
