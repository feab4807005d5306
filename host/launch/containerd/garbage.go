package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// The kinds of what Prepare makes.
const (
	kindImage  = "image"
	kindRootfs = "rootfs"
)

// Artifacts lists the images and root folders of this host.
func (l *Launcher) Artifacts(ctx context.Context) ([]launch.Artifact, error) {
	if l.life.Err() != nil {
		return nil, fmt.Errorf("list images: %w", errClosed)
	}
	records, err := l.client.ImageService().List(ctx, fmt.Sprintf("labels.%q==%q", labelHost, l.cfg.HostID))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", family(err))
	}
	list, err := l.rootfsArtifacts()
	if err != nil {
		return nil, fmt.Errorf("list root folders: %w", err)
	}
	for _, image := range records {
		size, err := l.imageBytes(ctx, image)
		if err != nil {
			return nil, fmt.Errorf("look at image %s: %w", image.Name, family(err))
		}
		list = append(list, launch.Artifact{Kind: kindImage, Name: image.Name, Digest: image.Labels[labelDigest], Bytes: size})
	}
	used, err := l.usedBinaries(ctx)
	if err != nil {
		return nil, err
	}
	for i, a := range list {
		list[i].InUse = used[a.Digest]
	}
	slices.SortFunc(list, func(a, b launch.Artifact) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Digest, b.Digest))
	})
	return list, nil
}

// usedBinaries are the digests of the binaries of all containers that there are.
func (l *Launcher) usedBinaries(ctx context.Context) (map[string]bool, error) {
	containers, err := l.client.ContainerService().List(ctx,
		fmt.Sprintf("labels.%q==%q", labelHost, l.cfg.HostID), fmt.Sprintf("labels.%q==%q", labelRunner, l.cfg.HostID),
		fmt.Sprintf("labels.%q==%q", labelWarm, l.cfg.HostID))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", family(err))
	}
	used := map[string]bool{}
	for _, c := range containers {
		used[c.Labels[labelDigest]] = true
	}
	return used, nil
}

// imageBytes is what the blobs of an image take; those that are missing, nothing.
func (l *Launcher) imageBytes(ctx context.Context, image images.Image) (int64, error) {
	total, counted := int64(0), map[digest.Digest]bool{}
	blobs := []digest.Digest{image.Target.Digest}
	for len(blobs) > 0 {
		blob := blobs[0]
		blobs = blobs[1:]
		info, err := l.client.ContentStore().Info(ctx, blob)
		if errdefs.IsNotFound(err) || counted[blob] {
			continue
		}
		if err != nil {
			return 0, err
		}
		counted[blob] = true
		total += info.Size
		for _, label := range []string{labelGCConfig, labelGCLayer} {
			if value := info.Labels[label]; value != "" {
				blobs = append(blobs, digest.Digest(value))
			}
		}
	}
	return total, nil
}

func (l *Launcher) rootfsArtifacts() ([]launch.Artifact, error) {
	folders, err := os.ReadDir(l.rootfsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []launch.Artifact
	for _, f := range folders {
		if digest.NewDigestFromEncoded(digest.SHA256, f.Name()).Validate() != nil {
			continue // being made, or not ours
		}
		list = append(list, launch.Artifact{
			Kind: kindRootfs, Name: f.Name(), Digest: f.Name(), Bytes: ownBytes(filepath.Join(l.rootfs(f.Name()), binaryName)),
		})
	}
	return list, nil
}

// ownBytes is what deleting a file frees: nothing while the store has it too.
func ownBytes(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Nlink > 1 {
		return 0
	}
	return st.Size
}

// Discard deletes the image and the root folder of a binary. No container can be
// created from them while it looks and deletes.
func (l *Launcher) Discard(ctx context.Context, binary string) error {
	if l.life.Err() != nil {
		return fmt.Errorf("discard image: %w", errClosed)
	}
	if err := digest.NewDigestFromEncoded(digest.SHA256, binary).Validate(); err != nil {
		return fmt.Errorf("discard image of %.80q: %w: %w", binary, err, worker.ErrInvalid)
	}
	done, err := l.images.Take(ctx, binary)
	if err != nil {
		return fmt.Errorf("discard image: %w", err)
	}
	defer done()
	used, err := l.usedBinaries(ctx)
	if err != nil {
		return fmt.Errorf("discard image: %w", err)
	}
	if used[binary] {
		return fmt.Errorf("discard image of %s: a worker was created from it: %w", binary, worker.ErrConflict)
	}
	l.ready.Delete(binary)
	// Synchronous: its blobs are gone when this returns.
	err = l.client.ImageService().Delete(ctx, imageName(launch.Image{Digest: binary}), images.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete image: %w", family(err))
	}
	// The binary first: a root folder that has it counts as whole.
	if err := os.Remove(filepath.Join(l.rootfs(binary), binaryName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete root folder: %w", err)
	}
	if err := os.RemoveAll(l.rootfs(binary)); err != nil {
		return fmt.Errorf("delete root folder: %w", err)
	}
	return nil
}
