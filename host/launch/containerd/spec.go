package containerd

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// workerDir is the worker's folder inside its container.
const workerDir = "/worker"

const (
	tmpBytes  = 64 << 20
	tmpFiles  = 16 << 10
	maxFiles  = 4096
	cpuPeriod = 100_000 // microseconds
	// Under pressure the kernel shall take a worker before the host, containerd
	// or a shim.
	oomScore = 500
)

// cell is what one container of a host has that others have not.
type cell struct {
	id      worker.Serial
	digest  string // of the binary
	uid     int
	limits  worker.Limits
	env     []string
	mounts  []specs.Mount // beside those that all have
	sysctls map[string]string
	files   uint64 // bytes that one file may have
	cpu     uint64 // seconds of processor time that one process may have; 0 for no bound
}

// ociSpec is the cage of one worker.
func (l *Launcher) ociSpec(s launch.Spec) (*specs.Spec, error) {
	return l.cage(cell{
		id: s.Serial, digest: s.Image.Digest, uid: s.UID, limits: s.Limits,
		env: []string{launch.EnvDir + "=" + workerDir}, mounts: folderMounts(s), sysctls: sysctls(s), files: launch.DiskBytes,
	})
}

// cage is what all containers run in.
func (l *Launcher) cage(c cell) (*specs.Spec, error) {
	seccomp, err := seccompProfile()
	if err != nil {
		return nil, err
	}
	process, err := ociProcess(c)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  "1.0.2", // nothing later is used, and runc of Debian 12 knows no more
		Root:     &specs.Root{Path: l.rootfs(c.digest), Readonly: true},
		Hostname: strings.ToLower(string(c.id)),
		Process:  process,
		Mounts:   append(mounts(), c.mounts...),
		// What is not known to a runtime is ignored by it.
		Annotations: l.annotations(),
		Linux: &specs.Linux{
			Sysctl:      c.sysctls,
			CgroupsPath: l.cgroups.path(c.id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources:         resources(c.limits, l.cgroups.limitsSwap()),
			Seccomp:           seccomp,
			RootfsPropagation: "private",
			MaskedPaths:       maskedPaths(),
			ReadonlyPaths:     readonlyPaths(),
		},
	}
	if l.cfg.RootUID != 0 {
		l.ownUsers(s, c)
	}
	return s, nil
}

// maskedPaths tell of the machine. Beside those that every container runtime
// masks: the kernel's command line and configuration, and its symbols, whose
// addresses anybody may read where perf is open to all.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/cmdline", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore",
		"/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/firmware",
	}
}

// readonlyPaths would change the machine; what is written to /proc/pressure has
// the kernel watch the machine's load on the writer's behalf.
func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger"}
}

func ociProcess(c cell) (*specs.Process, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("read limit of open files: %w", err)
	}
	open := min(maxFiles, files.Max) // more than the own limit takes a capability that root may lack
	umask, score := uint32(0o077), oomScore
	process := &specs.Process{
		Args:            []string{"/" + binaryName},
		Env:             c.env,
		Cwd:             "/",
		User:            specs.User{UID: uint32(c.uid), GID: uint32(c.uid), Umask: &umask},
		Capabilities:    &specs.LinuxCapabilities{},
		NoNewPrivileges: true,
		OOMScoreAdj:     &score,
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: open, Hard: open},
			{Type: "RLIMIT_FSIZE", Soft: c.files, Hard: c.files},
			{Type: "RLIMIT_CORE"},
		},
	}
	if c.cpu > 0 {
		process.Rlimits = append(process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_CPU", Soft: c.cpu, Hard: c.cpu})
	}
	return process, nil
}

// mounts are what everybody sees besides the root: file systems of the kernel's.
func mounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=64k"}},
		{
			Destination: "/tmp", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "noexec", "mode=1777", fmt.Sprintf("size=%d", tmpBytes), fmt.Sprintf("nr_inodes=%d", tmpFiles)},
		},
	}
}

// folderMounts are a worker's folder, of which it may write state/ and run/, and
// its own /etc if it has one.
func folderMounts(s launch.Spec) []specs.Mount {
	bind := func(to, name, mode string) specs.Mount {
		return specs.Mount{
			Destination: to, Type: "bind", Source: filepath.Join(s.Dir, name),
			Options: []string{"bind", mode, "private", "nosuid", "nodev", "noexec"},
		}
	}
	all := []specs.Mount{
		bind(workerDir, "", "ro"),
		bind(filepath.Join(workerDir, launch.StateDir), launch.StateDir, "rw"),
		bind(filepath.Join(workerDir, launch.RunDir), launch.RunDir, "rw"),
	}
	if s.Etc {
		all = append(all, bind("/etc", launch.EtcDir, "ro"))
	}
	return append(all, grantedMounts(s.Mounts)...)
}

// sysctls are those of the container's own network, of which a worker without
// Etc has no use: who serves a name serves it on the port that others expect.
func sysctls(s launch.Spec) map[string]string {
	if !s.Etc {
		return nil
	}
	return map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
}

func resources(limits worker.Limits, limitsSwap bool) *specs.LinuxResources {
	limits = launch.LimitsOf(limits)
	memory, pids, quota := limits.MemoryBytes, limits.PIDs, limits.CPUMillis*cpuPeriod/1000
	period := uint64(cpuPeriod)
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, // runc adds null, zero, random and the like
		Memory:  &specs.LinuxMemory{Limit: &memory},
		Pids:    &specs.LinuxPids{Limit: &pids},
		CPU:     &specs.LinuxCPU{Quota: &quota, Period: &period},
	}
	if limitsSwap {
		r.Memory.Swap = &memory // memory and swap together: no swap
	}
	return r
}
