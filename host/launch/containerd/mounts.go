package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

// The folders that a worker was granted are mounted by the runtime, which goes by
// their paths. Whatever happens to a path meanwhile: before the worker's first
// instruction what its container has in the mount's place is compared with the
// folder that was checked and is held open.

// labelMount, with the name of the place behind it, is a granted folder, JSON.
const labelMount = "dals.mount."

// grantedMounts are the folders at their places, on a file system of its own that
// nobody can write: the root has no folders for them. They are shown without what
// is mounted below them, and nothing in them is a program, a device, or gives
// another uid.
func grantedMounts(mounts []launch.Mount) []specs.Mount {
	if len(mounts) == 0 {
		return nil
	}
	all := []specs.Mount{{
		Destination: path.Clean(capability.PlaceDir), Type: "tmpfs", Source: "tmpfs",
		Options: []string{"nosuid", "nodev", "noexec", "mode=755", "size=64k", "nr_inodes=64"},
	}}
	for _, m := range mounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		all = append(all, specs.Mount{
			Destination: m.Place, Type: "bind", Source: m.Source,
			Options: []string{"bind", mode, "private", "nosuid", "nodev", "noexec"},
		})
	}
	return all
}

// havePlaces makes the folder below which granted folders are mounted. It is none
// of the image's, so that a binary's image is the same whatever its workers are
// granted.
func havePlaces(rootfs string) error {
	dir := filepath.Join(rootfs, capability.PlaceDir)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make place for mounts: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // past the umask
		return fmt.Errorf("make place for mounts: %w", err)
	}
	return syncDir(rootfs)
}

// labelMounts writes down what openMounts reads.
func labelMounts(labels map[string]string, mounts []launch.Mount) error {
	for _, m := range mounts {
		text, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode mount: %w", err)
		}
		labels[labelMount+path.Base(m.Place)] = string(text)
	}
	return nil
}

// held is a granted folder and the descriptor that keeps it.
type held struct {
	launch.Mount
	folder *os.File
}

// openMounts takes hold of the folders that a container's worker was granted.
func openMounts(c containers.Container) (all []held, err error) {
	defer func() {
		if err != nil {
			closeMounts(all)
		}
	}()
	for key, text := range c.Labels {
		if len(key) <= len(labelMount) || key[:len(labelMount)] != labelMount {
			continue
		}
		var m launch.Mount
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			return all, fmt.Errorf("read mount: %w: %w", err, worker.ErrCorrupt)
		}
		folder, err := m.Open()
		if err != nil {
			return all, err
		}
		all = append(all, held{m, folder})
	}
	return all, nil
}

func closeMounts(all []held) {
	for _, h := range all {
		_ = h.folder.Close() // nothing was written
	}
}

// checkMounts says whether a container that was made and not started has the
// folders that are held, and no others, in their places.
func (l *Launcher) checkMounts(ctx context.Context, serial worker.Serial, all []held) error {
	if len(all) == 0 {
		return nil
	}
	task, err := l.task(ctx, serial)
	if err != nil {
		return err
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", task.Pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open root of container: %w", err)
	}
	defer root.Close()
	for _, h := range all {
		shown, err := h.Shown(root)
		if err != nil {
			return err
		}
		err = h.Expect(h.folder, shown)
		_ = shown.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
