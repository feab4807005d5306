package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

func (l *Launcher) container(spec launch.Spec) (containers.Container, error) {
	if err := l.letPass(spec.Dir); err != nil {
		return containers.Container{}, err
	}
	cage, err := l.ociSpec(spec)
	if err != nil {
		return containers.Container{}, err
	}
	c, err := l.caged(spec.Serial, cage)
	c.Image = imageName(spec.Image)
	c.Labels = map[string]string{
		labelHost:    l.cfg.HostID,
		labelSerial:  string(spec.Serial),
		labelDigest:  spec.Image.Digest,
		labelType:    spec.Image.Type,
		labelVersion: spec.Image.Version,
		labelLog:     filepath.Join(spec.Dir, launch.LogsDir, launch.LogFile),
	}
	return c, errors.Join(err, labelMounts(c.Labels, spec.Mounts))
}

// runnerContainer is no worker's: it bears another label than those.
func (l *Launcher) runnerContainer(r *Runner) (containers.Container, error) {
	cage, err := l.cage(cell{
		id: r.id, digest: r.cfg.Image.Digest, uid: r.cfg.UID, limits: r.cfg.Limits, env: r.env,
		files: tmpBytes, cpu: uint64(r.cfg.Life/time.Second) + 1,
	})
	if err != nil {
		return containers.Container{}, err
	}
	c, err := l.caged(r.id, cage)
	c.Labels = map[string]string{labelRunner: l.cfg.HostID, labelDigest: r.cfg.Image.Digest}
	return c, err
}

// caged is the record of a container with that cage.
func (l *Launcher) caged(id worker.Serial, cage *specs.Spec) (containers.Container, error) {
	cageAny, err := typeurl.MarshalAny(cage)
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode container: %w", err)
	}
	options, err := typeurl.MarshalAny(&runcoptions.Options{BinaryName: l.tools.runtime, Root: l.site.runcRoot()})
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode runtime options: %w", err)
	}
	return containers.Container{
		ID:      string(id),
		Runtime: containers.RuntimeInfo{Name: l.site.shim, Options: options},
		Spec:    cageAny,
	}, nil
}

// folderOf is the worker's folder.
func folderOf(c containers.Container) string { return filepath.Dir(filepath.Dir(c.Labels[labelLog])) }

// register has containerd know of the container of spec.
func (l *Launcher) register(ctx context.Context, c containers.Container, spec launch.Spec) error {
	// From here on to the record the image must not be discarded.
	digest := spec.Image.Digest
	kept, err := l.images.Take(ctx, digest)
	if err != nil {
		return err
	}
	defer kept()
	if !rootfsReady(l.rootfs(digest)) {
		return fmt.Errorf("image %s is not prepared: %w", digest, worker.ErrInvalid)
	}
	if len(spec.Mounts) > 0 {
		if err := havePlaces(l.rootfs(digest)); err != nil {
			return err
		}
	}
	_, err = l.client.ContainerService().Create(ctx, c)
	if err = family(err); errors.Is(err, worker.ErrConflict) {
		if err := l.refit(ctx, c); err != nil {
			return err
		}
	}
	return err
}

// refit has a container that is there run in this cage from its next start on. An
// earlier version of the host may have made it, or one with other options.
func (l *Launcher) refit(ctx context.Context, c containers.Container) error {
	known, err := l.client.ContainerService().Get(ctx, c.ID)
	if err != nil {
		return fmt.Errorf("look up container: %w", family(err))
	}
	if known.Labels[labelHost] != l.cfg.HostID || known.Labels[labelDigest] != c.Labels[labelDigest] || sameCage(known.Spec.GetValue(), c.Spec.GetValue()) {
		return nil
	}
	known.Spec = c.Spec
	if _, err := l.client.ContainerService().Update(ctx, known, "spec"); err != nil {
		return fmt.Errorf("renew cage: %w", family(err))
	}
	return nil
}

// sameCage compares two cages but for what only hastens them.
func sameCage(one, other []byte) bool {
	var a, b specs.Spec
	if json.Unmarshal(one, &a) != nil || json.Unmarshal(other, &b) != nil {
		return false
	}
	a.Annotations, b.Annotations = nil, nil
	return reflect.DeepEqual(a, b)
}
