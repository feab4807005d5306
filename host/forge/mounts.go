package forge

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

// grantMounts makes grants of SOURCE:PLACE[:ro]. Links are followed here, once, and
// never again: what is granted is the folder that they lead to now.
func (f *Forge) grantMounts(asked []string) (grants []string, err error) {
	for _, text := range asked {
		c, err := capability.ParseMount(text)
		if err != nil {
			return nil, worker.Hint(fmt.Errorf("%w: %w", err, worker.ErrInvalid), "write it as in --mount /srv/photos:/mnt/photos:ro")
		}
		source, err := filepath.EvalSymlinks(c.Folder.Source)
		if err != nil {
			return nil, refusedMount(c, err)
		}
		folder, found, err := launch.OpenFolder(source)
		if err != nil {
			return nil, refusedMount(c, err)
		}
		_ = folder.Close() // nothing was done with it
		found.ReadOnly = c.Folder.ReadOnly
		c.Folder = found
		if _, err := capability.Parse(c.String()); err != nil {
			return nil, refusedMount(c, err)
		}
		grants = append(grants, c.String())
	}
	return grants, nil
}

// checkMounts says whether the folders among the grants are there, and no worker's
// way to what is the host's or the machine's.
func (f *Forge) checkMounts(grants []string) error {
	mounts, err := launch.Mounts(grants)
	if err != nil {
		return fmt.Errorf("mounts: %w: %w", err, worker.ErrInvalid)
	}
	for _, m := range mounts {
		folder, err := m.Open()
		if err != nil {
			return err
		}
		err = f.checkFolder(folder)
		_ = folder.Close() // nothing was done with it
		if err != nil {
			return refusedMount(capability.Capability{Name: m.Place, Folder: m.Folder}, err)
		}
	}
	return nil
}

func refusedMount(c capability.Capability, err error) error {
	return worker.Hint(fmt.Errorf("mount %s: folder %s: %w: %w", c.Name, c.Folder.Source, err, worker.ErrInvalid),
		"give a folder of its own that holds what the worker needs and nothing else")
}

// ofTheMachine are folders that hold what rules the machine, or other containers
// of it. The sockets of those who run containers are in /run.
func ofTheMachine() []string {
	return []string{
		"/proc", "/sys", "/dev", "/run", "/etc", "/boot",
		"/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet",
	}
}

// checkFolder refuses a folder that is, lies in, or contains one that no worker may
// have, by whatever path.
func (f *Forge) checkFolder(folder *os.File) error {
	if err := cmp.Or(checkFileSystem(folder), checkInside(folder)); err != nil {
		return err
	}
	above, err := andAbove(folder)
	if err != nil {
		return err
	}
	for _, path := range slices.Concat(f.Own, ofTheMachine()) {
		kept, err := placesOf(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue // and what this host cannot find it cannot show to anybody
		}
		switch {
		case err != nil:
			return err
		case slices.Contains(above, kept[0]):
			return fmt.Errorf("it is, or lies in, %s, which no worker may have", path)
		case slices.Contains(kept, above[0]):
			return fmt.Errorf("%s lies in it, which no worker may have", path)
		}
	}
	return nil
}

// place tells a folder from all others of the machine, at this moment.
type place struct{ device, inode uint64 }

func placeOf(info os.FileInfo) place {
	st := info.Sys().(*syscall.Stat_t)
	return place{st.Dev, st.Ino}
}

// placesOf are the folder at path and all that it lies in, up to the root.
func placesOf(path string) (all []place, err error) {
	if path, err = filepath.EvalSymlinks(path); err == nil {
		path, err = filepath.Abs(path)
	}
	for err == nil {
		var info os.FileInfo
		if info, err = os.Stat(path); err != nil {
			break
		}
		if all = append(all, placeOf(info)); path == "/" {
			return all, nil
		}
		path = filepath.Dir(path)
	}
	return nil, err
}

// andAbove is placesOf for a folder that is held open.
func andAbove(folder *os.File) (all []place, err error) {
	at := folder
	for {
		info, err := at.Stat()
		if err != nil {
			return nil, err
		}
		here := placeOf(info)
		if len(all) > 0 && all[len(all)-1] == here { // the root lies in itself
			return all, nil
		}
		all = append(all, here)
		fd, err := unix.Openat(int(at.Fd()), "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("look above the folder: %w", err)
		}
		at = os.NewFile(uintptr(fd), "..")
		defer at.Close() // there are as many as the path has names
	}
}

// checkFileSystem refuses the kernel's own, wherever they are mounted.
func checkFileSystem(folder *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(folder.Fd()), &fs); err != nil {
		return fmt.Errorf("look at its file system: %w", err)
	}
	switch int64(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.BINFMTFS_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.NSFS_MAGIC:
		return errors.New("it is a file system of the kernel's")
	}
	return nil
}

// mostLooked bounds how many names of a folder are looked at.
const mostLooked = 100_000

// checkInside refuses a folder that has, at its top, a socket or a pipe that
// everybody may write: no flag of a mount keeps a worker from whoever listens
// there. It is no proof that there is none, but what is granted by mistake has
// them there. What this host may not read it does not look into.
func checkInside(folder *os.File) error {
	readable, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", folder.Fd()))
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer readable.Close()
	entries, err := readable.ReadDir(mostLooked)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, e := range entries {
		if e.Type()&(os.ModeSocket|os.ModeNamedPipe) == 0 {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().Perm()&0o002 != 0 { // else it has gone
			return fmt.Errorf("%.80q in it is a socket or a pipe that everybody may write: a worker would reach by it whoever listens", e.Name())
		}
	}
	return nil
}
