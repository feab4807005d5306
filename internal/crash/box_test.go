package crash

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
)

// boxes: what containerd, its shims, runc and the kernel have of workers is what
// the workers that there are need.
func (m *matrix) boxes(s *state) error {
	address := filepath.Join(m.dir, "containerd", "containerd.sock")
	space := "dals-" + m.id
	c, err := containerd.New(address, containerd.WithDefaultNamespace(space))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	containers, err := c.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	for _, found := range containers {
		if _, alive := s.workers[found.ID]; !alive && !s.warm[found.ID] {
			fault("container %s", found.ID)
		}
	}
	running, err := c.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return err
	}
	for _, t := range running.Tasks {
		isWarm := s.warm[t.ID] && t.Status == tasktypes.Status_CREATED
		if s.workers[t.ID].State != "live" && !isWarm {
			fault("task %s is %s", t.ID, t.Status)
		}
	}
	leases, err := c.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, l := range leases {
		fault("lease %s", l.ID)
	}
	ingests, err := c.ContentStore().ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, i := range ingests {
		fault("half a blob: %s", i.Ref)
	}
	err = c.SnapshotService("native").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		fault("snapshot %s", info.Name)
		return nil
	})
	if err != nil {
		return err
	}
	for serial := range s.given {
		if s.workers[serial].State == "live" {
			continue
		}
		socket := sha256.Sum256([]byte(filepath.Join(address, space, serial)))
		paths := []string{
			fmt.Sprintf("/run/containerd/s/%x", socket),
			filepath.Join(m.dir, "containerd/state/io.containerd.runtime.v2.task", space, serial),
			filepath.Join(m.dir, "containerd/runc", space, serial),
			filepath.Join("/sys/fs/cgroup", space, serial),
		}
		if _, there := s.workers[serial]; !there {
			groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", space, serial))
			paths = append(paths, groups...)
		}
		for _, path := range paths {
			if _, err := os.Lstat(path); err == nil {
				fault("left: %s", path)
			}
		}
	}
	return errors.Join(faults...)
}

// forgetImages has containerd and the launcher know no image.
func (m *matrix) forgetImages() error {
	c, err := containerd.New(filepath.Join(m.dir, "containerd", "containerd.sock"), containerd.WithDefaultNamespace("dals-"+m.id))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	list, err := c.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, image := range list {
		err = errors.Join(err, c.ImageService().Delete(ctx, image.Name, images.SynchronousDelete()))
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(m.dir, "containerd", "rootfs")))
}
