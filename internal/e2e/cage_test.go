package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// hostile is the binary of the type that tries to get out.
var hostile = sync.OnceValues(func() (string, error) {
	out := filepath.Join(bin, "dals-worker-hostile")
	build := exec.Command("go", "build", "-o", out, "github.com/dals-host/dals-host/internal/e2e/hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build hostile: %w\n%s", err, text)
	}
	return out, nil
})

// cage is a host with a worker that tries to get out and one that minds its own
// business.
type cage struct {
	*host
	binary     string
	prisoner   string // serials
	bystander  string
	prisonerAt string // folders
	otherAt    string
}

// secret stands in the host's environment.
const secret = "DALS_E2E_SECRET_OF_THE_HOST"

// cages are the kinds of cages, and the flags that give them.
var cages = map[string][]string{
	"crun": {"--runtime", "crun"}, "runc": {"--runtime", "runc"},
	"crun, user namespaces": {"--runtime", "crun", "--userns"}, "runc, user namespaces": {"--runtime", "runc", "--userns"},
}

func newCage(t *testing.T, flags ...string) *cage {
	t.Helper()
	binary, err := hostile()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, launcher: "containerd", flags: flags, env: []string{secret + "=1"}}
	h.setup()
	h.drop("dals-worker-hostile")
	h.eventually("hostile is registered", func() error {
		_, err := h.client.Type(t.Context(), "hostile")
		return err
	})
	if probed := strings.Count(h.log.String(), "plugin runs in a container"); probed < 4 {
		t.Errorf("%d of 4 plugins were probed in a container", probed)
	}
	c := &cage{host: h, binary: binary, prisoner: h.forge("prisoner", "hostile").WorkerSerial, bystander: h.forge("bystander", "template").WorkerSerial}
	c.prisonerAt, c.otherAt = c.folder(c.prisoner), c.folder(c.bystander)
	return c
}

func (c *cage) folder(serial string) string {
	return filepath.Join(c.dir, "workers", "instances", serial)
}

// try has a worker make an attempt.
func (c *cage) try(worker, name string, args ...string) (string, error) {
	result, err := c.send(worker, "hostile.try", map[string]any{"name": name, "args": append([]string{}, args...)})
	if err != nil {
		return "", err
	}
	var out struct{ Outcome string }
	if err := json.Unmarshal(result.Result, &out); err != nil {
		return "", err
	}
	return out.Outcome, nil
}

// asRoot makes the attempt where nothing but its mounts confines it.
func (c *cage) asRoot(name string, args ...string) string {
	c.t.Helper()
	cmd := exec.Command(c.binary, append([]string{"try", name}, args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	inherited, err := os.Open("/")
	if err != nil {
		c.t.Fatal(err)
	}
	defer inherited.Close()
	cmd.ExtraFiles = []*os.File{inherited}
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// attempt is one way out, and what must come of it.
type attempt struct {
	name    string
	args    []string
	want    string   // outcomes, one of which it must have in the cage
	control []string // arguments as root, where others make sense
	same    string   // why it may have the same outcome as root
	whole   bool     // want is one outcome, with spaces in it
}

// callsRefused are the calls by name of the hostile type, by the errno of the
// cage's refusal.
var callsRefused = map[string][]string{
	"EPERM": {
		"mount", "mount cgroup", "mount bind", "remount", "umount", "pivot_root", "chroot", "fsopen", "open_tree", "move_mount",
		"mount_setattr", "unshare user", "unshare mount", "unshare net", "setns", "clone user", "clone pid", "ptrace",
		"process_vm_readv", "pidfd_getfd", "kcmp", "mknod block", "mknod char", "setuid", "setgid", "setgroups", "capset",
		"keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load", "bpf",
		"perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at",
		"fanotify_init", "quotactl", "quotactl_fd", "swapon", "swapoff", "reboot", "clock_settime", "sethostname",
		"setdomainname", "acct", "syslog", "mbind", "set_mempolicy", "migrate_pages", "move_pages", "process_madvise",
		"personality", "real time",
	},
	"ENOSYS":             {"clone3"}, // so that libraries take clone, whose flags can be looked at
	"EACCES":             {"priority"},
	"ENOTSUP EOPNOTSUPP": {"fallocate"}, // as of a file system that has no such thing
}

// TestCageHolds: every way out that we know is refused to a forged worker, and
// would be none without the cage.
func TestCageHolds(t *testing.T) {
	for name, flags := range cages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCage(t, flags...)
			for _, a := range slices.Concat(statusOfCage(), systemCalls(), c.files(), c.kernelFiles(), c.network()) {
				c.check(a)
			}
			c.mustSend("bystander", "template.echo", map[string]string{"message": "still here"})
			if w := c.worker("prisoner"); w.State != "live" || w.Restarts != 0 {
				t.Errorf("afterwards the prisoner is %+v", w)
			}
		})
	}
}

func (c *cage) check(a attempt) {
	c.t.Helper()
	got, err := c.try("prisoner", a.name, a.args...)
	if err != nil {
		c.t.Errorf("%s %q: %v", a.name, a.args, err)
		return
	}
	c.judge(a, got)
}

// judge compares what came of an attempt in a cage with what must, and with what
// comes of it without one.
func (c *cage) judge(a attempt, got string) {
	c.t.Helper()
	want := strings.Fields(a.want)
	if a.whole {
		want = []string{a.want}
	}
	if !slices.Contains(want, got) {
		c.t.Errorf("%s %q: %s, want %s", a.name, a.args, got, a.want)
	}
	args := a.args
	if a.control != nil {
		args = a.control
	}
	free := c.asRoot(a.name, args...)
	c.t.Logf("%-18s %-60s %-10s as root: %s", a.name, strings.Join(a.args, " "), got, free)
	if a.same == "" && slices.Contains(want, free) {
		c.t.Errorf("%s %q has the same outcome %s without the cage: it shows nothing", a.name, args, free)
	}
}

func systemCalls() []attempt {
	var all []attempt
	for errno, names := range callsRefused {
		for _, name := range names {
			all = append(all, attempt{name: name, want: errno})
		}
	}
	for _, name := range []string{"open_tree_attr", "file_getattr", "file_setattr", "a call of tomorrow"} {
		all = append(all, attempt{name: name, want: "EPERM ENOSYS", same: "the kernel may be too old for it"})
	}
	for family := range 46 {
		switch family {
		case syscall.AF_UNIX, syscall.AF_INET, syscall.AF_INET6, syscall.AF_NETLINK:
		default:
			all = append(all, attempt{name: "socket", args: numbers(family, syscall.SOCK_RAW, 0), want: "EPERM"})
		}
	}
	for _, s := range [][]int{
		{syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP},
		{syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_RAW},
		{syscall.AF_INET6, syscall.SOCK_RAW, syscall.IPPROTO_ICMPV6},
		{syscall.AF_INET, syscall.SOCK_PACKET, 0x300},
		{syscall.AF_INET, syscall.SOCK_STREAM, 132}, // SCTP
		{syscall.AF_INET, syscall.SOCK_STREAM, 262}, // MPTCP
		{syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_NETFILTER},
		{syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_KOBJECT_UEVENT},
		{syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_AUDIT},
		{syscall.AF_NETLINK, syscall.SOCK_RAW, 16}, // generic
	} {
		all = append(all, attempt{name: "socket", args: numbers(s...), want: "EPERM"})
	}
	return append(all, attempt{name: "socketpair", args: numbers(30, syscall.SOCK_STREAM), want: "EPERM"}) // TIPC
}

// statusOfCage is what the kernel says of a process in a cage.
func statusOfCage() (all []attempt) {
	const none = "0000000000000000"
	for word, want := range map[string]string{
		"Seccomp": "2", "NoNewPrivs": "1", "CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
	} {
		a := attempt{name: "status", args: []string{word}, want: want}
		if word == "CapInh" || word == "CapAmb" {
			a.same = "root has none to be inherited, either"
		}
		all = append(all, a)
	}
	return all
}

func numbers(n ...int) []string {
	var all []string
	for _, i := range n {
		all = append(all, strconv.Itoa(i))
	}
	return all
}

// files are the host's, other workers', and those of its own that it must not
// change.
func (c *cage) files() []attempt {
	scratch := c.t.TempDir() + "/x"
	var all []attempt
	for _, path := range []string{
		"/etc/shadow", "/etc/passwd", c.dir + "/keys/host.seed", c.dir + "/registry.db", c.prisonerAt + "/identity.json",
		c.otherAt + "/identity.json", c.otherAt + "/certs/worker.key", "/proc/1/root" + c.otherAt + "/certs/worker.key",
		"/worker/../../.." + c.otherAt + "/certs/worker.key",
	} {
		all = append(all, attempt{name: "read", args: []string{path}, want: "ENOENT", control: []string{strings.TrimPrefix(path, "/worker/../../..")}})
	}
	for _, path := range []string{"/root", "/home", "/var", "/run", "/usr", c.dir, filepath.Dir(c.otherAt), "/sys/kernel", "/sys/fs/cgroup", "/dev/shm"} {
		all = append(all, attempt{name: "list", args: []string{path}, want: "ENOENT", control: []string{"/etc"}})
	}
	all = append(all, attempt{name: "list", args: []string{"/worker/logs"}, want: "EACCES", control: []string{c.prisonerAt + "/logs"}})
	for path, want := range map[string]string{
		"/x": "EROFS EACCES", "/etc/x": "EROFS EACCES", "/dals-worker": "EROFS EACCES", "/dev/x": "EACCES", "/worker/x": "EROFS EACCES",
		"/worker/identity.json": "EROFS EACCES", "/worker/certs/worker.key": "EROFS EACCES", "/worker/vault/x": "EROFS EACCES",
		"/worker/worker_manifest.json": "EROFS EACCES", "/worker/logs/worker.log": "EROFS EACCES",
		"/sys/fs/cgroup/cgroup.procs": "ENOENT", "/proc/self/root" + c.otherAt + "/state/x": "ENOENT",
	} {
		all = append(all, attempt{name: "write", args: []string{path}, want: want, control: []string{scratch}})
	}
	for _, socket := range []string{c.otherAt + "/run/worker.sock", c.dir + "/host.sock", c.containerd()} {
		all = append(all, attempt{name: "connect", args: []string{socket}, want: "ENOENT", control: []string{c.reachable(socket)}})
	}
	return append(all,
		attempt{name: "descriptors", args: []string{c.dir}, want: "nothing"},
		attempt{name: "find", args: []string{secret}, want: "nothing"},
		attempt{name: "strangers", want: "nothing"},
		attempt{name: "signal", args: numbers(c.cmd.Process.Pid), want: "ESRCH"},
	)
}

// containerd is the socket of the host's containerd.
func (c *cage) containerd() string {
	c.t.Helper()
	for _, path := range []string{c.dir + "/containerd/containerd.sock", "/run/dals-" + c.id + "/containerd.sock"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	c.t.Fatal("the socket of containerd is not where the test looks")
	return ""
}

// reachable is a path to a socket that is short enough to be dialled.
func (c *cage) reachable(socket string) string {
	c.t.Helper()
	link := filepath.Join(os.TempDir(), "dals-e2e-"+c.id+strconv.Itoa(len(socket)))
	if err := os.Symlink(socket, link); err != nil && !errors.Is(err, os.ErrExist) {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { os.Remove(link) })
	return link
}

// kernelFiles are those by which the kernel tells of the machine, or is told.
func (c *cage) kernelFiles() []attempt {
	lacking := ""
	if header, data := (unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}), [2]unix.CapUserData{}; unix.Capget(&header, &data[0]) != nil || data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		lacking = "root has no CAP_SYS_RESOURCE here"
	}
	var all []attempt
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/cmdline", "/proc/config.gz", "/proc/modules"} {
		all = append(all, attempt{name: "read", args: []string{path}, want: "nothing ENOENT EACCES EPERM", same: missing(path)})
	}
	for _, path := range []string{"/dev/kmsg", "/dev/mem", "/dev/loop-control", "/dev/fuse", "/dev/net/tun", "/proc/kmsg"} {
		all = append(all, attempt{name: "open", args: []string{path}, want: "ENOENT EACCES EPERM", same: missing(path)})
	}
	return append(all,
		attempt{name: "addresses", args: []string{"/proc/kallsyms"}, want: "nothing EACCES", same: missing("/proc/kallsyms")},
		attempt{name: "append", args: []string{"/proc/sysrq-trigger", "h"}, want: "ENOENT EROFS EACCES", same: missing("/proc/sysrq-trigger")},
		attempt{name: "append", args: []string{"/proc/sys/kernel/hostname", "x"}, want: "EROFS EACCES"},
		attempt{name: "append", args: []string{"/proc/sys/kernel/core_pattern", ""}, want: "EROFS EACCES"},
		attempt{name: "append", args: []string{"/proc/self/oom_score_adj", "-1000"}, want: "EACCES", same: lacking},
		attempt{name: "more open files", want: "EPERM", same: lacking},
		attempt{name: "append", args: []string{"/proc/pressure/memory", "some 150000 2000000"}, want: "EROFS EACCES ENOENT", same: missing("/proc/pressure/memory")},
	)
}

// missing says why there is nothing to compare with.
func missing(path string) string {
	if f, err := os.Open(path); err != nil {
		return err.Error()
	} else if err := f.Close(); err != nil {
		return err.Error()
	}
	return ""
}

// network is all that is not the worker's own loopback.
func (c *cage) network() []attempt {
	var all []attempt
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": "@dals-e2e-" + c.id} {
		l, err := net.Listen(map[string]string{"tcp4": "tcp4", "tcp6": "tcp6", "unix": "unix"}[network], address)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { l.Close() })
		all = append(all, attempt{name: "dial", args: []string{network, l.Addr().String()}, want: "ECONNREFUSED EADDRNOTAVAIL"})
	}
	for _, address := range outside(c.t) {
		all = append(all,
			attempt{name: "dial", args: []string{"tcp", address.String()}, want: "ENETUNREACH EADDRNOTAVAIL"},
			attempt{name: "send", args: []string{address.String()}, want: "ENETUNREACH EADDRNOTAVAIL"},
		)
	}
	return append(all, attempt{name: "interfaces", want: "nothing", same: onlyLoopback()})
}

// outside is where this machine can be reached at from others, with a listener.
func outside(t testing.TB) []net.Addr {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var all []net.Addr
	for _, a := range addresses {
		ip := a.(*net.IPNet).IP
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		all = append(all, l.Addr())
	}
	return all
}

func onlyLoopback() string {
	if all, err := net.Interfaces(); err == nil && len(all) == 1 {
		return "this machine has no other"
	}
	return ""
}
