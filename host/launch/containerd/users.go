package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// A user namespace of a container's own has two users: the worker, with the uid that
// it has on the machine, so that no file changes hands, and root, which sets the
// container up and is nobody's uid on the machine. That root passes no folder that
// only the machine's root can enter, as the data folder is one. So containerd, and
// what it executes, sees the root folders in a second place as well, which it can
// reach; nobody else sees them there.

// showRoots shows the root folders there in this mount namespace.
func (p *private) showRoots() error {
	for _, dir := range []string{rootfsDir(p.dir), p.roots} {
		if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.Chmod(dir, 0o711); err != nil { // past the umask
			return err
		}
	}
	if err := unix.Mount(rootfsDir(p.dir), p.roots, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount root folders: %w", err)
	}
	return nil
}

// endBlind ends a containerd that does not see them there, where they are needed: an
// earlier version of the host has started it. Workers run on.
func (p *private) endBlind(ctx context.Context, running []*pidfd.Process) ([]*pidfd.Process, error) {
	if !p.users || len(running) == 0 || p.showsRoots(running[0]) {
		return running, nil
	}
	p.log.Info("containerd is started anew, for user namespaces", "pid", running[0].Identity().PID)
	err := p.stop(ctx)
	for _, process := range running {
		_ = process.Close()
	}
	return nil, err
}

// showsRoots says whether a process sees the root folders at their place.
func (p *private) showsRoots(process *pidfd.Process) bool {
	there, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", process.Identity().PID, p.roots))
	if err != nil {
		return false
	}
	own, err := os.Stat(rootfsDir(p.dir))
	return err == nil && os.SameFile(own, there)
}

// ownUsers gives a cage a user namespace of its own.
func (l *Launcher) ownUsers(s *specs.Spec, c cell) {
	users := []specs.LinuxIDMapping{
		{ContainerID: 0, HostID: uint32(l.cfg.RootUID), Size: 1},
		{ContainerID: uint32(c.uid), HostID: uint32(c.uid), Size: 1},
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = users, users
	s.Root.Path = filepath.Join(l.site.roots, c.digest)
	for i, m := range s.Mounts {
		if m.Type == "bind" && slices.Contains(m.Options, "rw") {
			// With a user namespace crun 1.8 forgets the others of such a mount, but for these.
			s.Mounts[i].Options = slices.Concat(m.Options, []string{"rnosuid", "rnodev", "rnoexec"})
		}
	}
}

// letPass lets the root of a user namespace through a worker's folder, to what is
// mounted below it. Others do not come as far as to the folder.
func (l *Launcher) letPass(folder string) error {
	if l.cfg.RootUID == 0 {
		return nil
	}
	info, err := os.Lstat(folder)
	if err != nil {
		return err
	}
	const pass = 0o001
	if info.Mode()&pass != 0 {
		return nil
	}
	return os.Chmod(folder, info.Mode().Perm()|pass)
}

// UserNamespaces says whether containers can have user namespaces of their own on this
// machine: the error is worker.ErrUnavailable and says why not.
func UserNamespaces(ctx context.Context) error {
	program, _, err := findRuntime(ctx, "")
	if err != nil {
		return unavailable(installHint, "%w", err)
	}
	// What gives mounts these options came with Linux 5.12.
	if err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) {
		return worker.Hint(fmt.Errorf("mount_setattr: %w (%w)", err, worker.ErrUnavailable), "leave out --userns, or use Linux 5.12 or later")
	}
	const nobody = 65534 // whoever it is, it is another than root
	users := []syscall.SysProcIDMap{{HostID: nobody, Size: 1}}
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: users, GidMappings: users,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	if err := cmd.Run(); err != nil {
		return worker.Hint(fmt.Errorf("make a user namespace: %w (%w)", err, worker.ErrUnavailable),
			"look at /proc/sys/user/max_user_namespaces, or leave out --userns")
	}
	return nil
}
