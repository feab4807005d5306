package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// binaryName is the worker binary's place in the root of image and rootfs.
const binaryName = "dals-worker"

type rootDir struct {
	name string
	mode os.FileMode
}

// rootDirs are the folders of image and rootfs, every mount point among them.
var rootDirs = []rootDir{
	{"dev", 0o755},
	{"etc", 0o755},
	{"proc", 0o755},
	{"sys", 0o755},
	{"tmp", os.ModeSticky | 0o777}, // runc gives a tmpfs the mode of its mount point
	{"worker", 0o755},
}

// imageBlobs is an image as it goes into a content store, but for the binary.
type imageBlobs struct {
	binary       string // hex SHA-256 of the binary
	size         int64
	layerHead    []byte // the layer up to the binary's bytes
	layerTail    []byte // and after them
	layer        ocispec.Descriptor
	configJSON   []byte
	config       ocispec.Descriptor
	manifestJSON []byte
	manifest     ocispec.Descriptor
}

// ImageDigest is the digest of the image that is made from the worker binary at
// path: what Prepare returns for it, without a containerd. The same bytes give
// the same digest on every machine of one architecture.
func ImageDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open binary: %w", err)
	}
	defer f.Close()
	blobs, err := makeImage(f)
	if err != nil {
		return "", err
	}
	return blobs.manifest.Digest.String(), nil
}

// makeImage reads binary once and puts the image together around it.
func makeImage(binary *os.File) (imageBlobs, error) {
	info, err := binary.Stat()
	if err != nil {
		return imageBlobs{}, fmt.Errorf("make image: %w", err)
	}
	b := imageBlobs{size: info.Size()}
	if err := b.frameLayer(); err != nil {
		return imageBlobs{}, fmt.Errorf("make layer: %w", err)
	}
	plain, layer := sha256.New(), digest.SHA256.Digester()
	size, err := io.Copy(layer.Hash(), b.layerReader(io.TeeReader(binary, plain)))
	if err != nil {
		return imageBlobs{}, fmt.Errorf("read binary: %w", err)
	}
	b.binary = hex.EncodeToString(plain.Sum(nil))
	b.layer = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: layer.Digest(), Size: size}
	if b.configJSON, b.config, err = encode(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/" + binaryName}, WorkingDir: "/"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{b.layer.Digest}},
	}); err != nil {
		return imageBlobs{}, err
	}
	b.manifestJSON, b.manifest, err = encode(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    b.config,
		Layers:    []ocispec.Descriptor{b.layer},
	})
	return b, err
}

// frameLayer makes all of the layer but the binary's bytes, which come last.
func (b *imageBlobs) frameLayer() error {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	for _, d := range rootDirs {
		mode := int64(d.mode.Perm())
		if d.mode&os.ModeSticky != 0 {
			mode |= 0o1000
		}
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeDir, Name: d.name + "/", Mode: mode, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: binaryName, Mode: 0o555, Size: b.size, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
	}); err != nil {
		return err
	}
	const block = 512
	padding := (block - b.size%block) % block
	b.layerHead, b.layerTail = head.Bytes(), make([]byte, padding+2*block)
	return nil
}

func (b *imageBlobs) layerReader(binary io.Reader) io.Reader {
	return io.MultiReader(bytes.NewReader(b.layerHead), io.LimitReader(binary, b.size), bytes.NewReader(b.layerTail))
}

func encode(mediaType string, v any) ([]byte, ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("encode image: %w", err)
	}
	return data, ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, nil
}

// Prepare writes image to the content store and makes the folder that its
// workers run from. A binary whose bytes do not match image.Digest is
// worker.ErrCorrupt.
func (l *Launcher) Prepare(ctx context.Context, image launch.Image) (string, error) {
	digest, err := l.takeImage(ctx, image, l.prepare)
	if err != nil {
		return "", fmt.Errorf("prepare image: %w", err)
	}
	return digest, nil
}

// ImageDigest is what Prepare returns for the image; it writes nothing.
func (l *Launcher) ImageDigest(ctx context.Context, image launch.Image) (string, error) {
	digest, err := l.takeImage(ctx, image, l.foresee)
	if err != nil {
		return "", fmt.Errorf("foresee image: %w", err)
	}
	return digest, nil
}

// takeImage is the digest of an image that is there, or else what fresh says.
func (l *Launcher) takeImage(ctx context.Context, image launch.Image, fresh func(context.Context, launch.Image) (string, error)) (string, error) {
	if l.life.Err() != nil {
		return "", errClosed
	}
	if err := image.Check(); err != nil {
		return "", err
	}
	done, err := l.images.Take(ctx, image.Digest)
	if err != nil {
		return "", err
	}
	defer done()
	if prepared, ok := l.ready.Load(image.Digest); ok && rootfsReady(l.rootfs(image.Digest)) {
		return prepared.(string), nil
	}
	record, err := l.client.ImageService().Get(ctx, imageName(image))
	if err == nil && rootfsReady(l.rootfs(image.Digest)) {
		l.ready.Store(image.Digest, record.Target.Digest.String())
		return record.Target.Digest.String(), nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("look up image: %w", family(err))
	}
	return fresh(ctx, image)
}

// foresee works an image's digest out from the binary, once.
func (l *Launcher) foresee(_ context.Context, image launch.Image) (string, error) {
	if foreseen, ok := l.foreseen.Load(image.Digest); ok {
		return foreseen.(string), nil
	}
	binary, blobs, err := openImage(image)
	if err != nil {
		return "", err
	}
	l.foreseen.Store(image.Digest, blobs.manifest.Digest.String())
	return blobs.manifest.Digest.String(), binary.Close()
}

func (l *Launcher) prepare(ctx context.Context, image launch.Image) (string, error) {
	binary, blobs, err := openImage(image)
	if err != nil {
		return "", err
	}
	defer binary.Close()
	if err := l.writeImage(ctx, image, blobs, binary); err != nil {
		return "", fmt.Errorf("write image: %w", family(err))
	}
	if err := makeRootfs(l.rootfs(image.Digest), image.Path); err != nil {
		return "", err
	}
	return blobs.manifest.Digest.String(), nil
}

// openImage opens the image's binary and puts the image together.
func openImage(image launch.Image) (*os.File, imageBlobs, error) {
	binary, err := os.Open(image.Path)
	if err != nil {
		return nil, imageBlobs{}, fmt.Errorf("open binary: %w", err)
	}
	blobs, err := makeImage(binary)
	if err == nil && blobs.binary != image.Digest {
		err = fmt.Errorf("binary %s has digest %s, want %s: %w", image.Path, blobs.binary, image.Digest, worker.ErrCorrupt)
	}
	if err != nil {
		return nil, imageBlobs{}, errors.Join(err, binary.Close())
	}
	return binary, blobs, nil
}

// sweepLeases deletes what an earlier host held while it wrote an image and did
// not live to let go: the blobs that no image names go with it.
func sweepLeases(ctx context.Context, service leases.Manager) error {
	left, err := service.List(ctx)
	for _, lease := range left {
		err = errors.Join(err, service.Delete(ctx, lease, leases.SynchronousDelete))
	}
	if err != nil {
		return fmt.Errorf("sweep leases: %w", family(err))
	}
	return nil
}

// writeImage stores the blobs, each held by the one that names it and all by
// the image's record; until that is there, by a lease.
func (l *Launcher) writeImage(ctx context.Context, image launch.Image, b imageBlobs, binary *os.File) (err error) {
	ctx, release, err := l.client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, release(ctx))
	}()
	if _, err := binary.Seek(0, io.SeekStart); err != nil {
		return err
	}
	store := l.client.ContentStore()
	for _, blob := range []struct {
		ocispec.Descriptor
		data io.Reader
		opts []content.Opt
	}{
		{b.layer, b.layerReader(binary), nil},
		{b.config, bytes.NewReader(b.configJSON), nil},
		{b.manifest, bytes.NewReader(b.manifestJSON), []content.Opt{content.WithLabels(map[string]string{
			labelGCConfig: b.config.Digest.String(),
			labelGCLayer:  b.layer.Digest.String(),
		})}},
	} {
		if err := content.WriteBlob(ctx, store, "dals-"+blob.Digest.String(), blob.data, blob.Descriptor, blob.opts...); err != nil {
			return err
		}
	}
	_, err = l.client.ImageService().Create(ctx, images.Image{
		Name:   imageName(image),
		Target: b.manifest,
		Labels: map[string]string{labelHost: l.cfg.HostID, labelDigest: image.Digest, labelType: image.Type, labelVersion: image.Version},
	})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// The labels by which containerd knows what a manifest needs.
const (
	labelGCConfig = "containerd.io/gc.ref.content.config"
	labelGCLayer  = "containerd.io/gc.ref.content.l.0"
)

func imageName(image launch.Image) string { return "dals.host/worker:" + image.Digest }
