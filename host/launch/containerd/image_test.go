package containerd

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// TestImageDigestIsForever: a worker's manifest names this digest. If it moves,
// dry runs and manifests of before no longer agree with what is made now.
func TestImageDigestIsForever(t *testing.T) {
	t.Parallel()
	known, ok := map[string]map[int]string{
		"amd64": {
			0:    "sha256:2589ee2b16e6a355497071690b911bc4e175b9e1fd07de902f9bee0ef8869f75",
			512:  "sha256:5a32e98d305e2e1966f0da6590fedf3c16a242782eda60757a1da9fb585b701a",
			1000: "sha256:b4d38e854ea3e6d7c32f66681683fc8b560291471d22720688c3bcdff712189f",
		},
		"arm64": {
			0:    "sha256:847089c5c4b872c16e7445552b73b827c26fc60b03dbe05640f4ef0a3bca8c5a",
			512:  "sha256:44edf9e8f758495b19dfeee678c15066023526a179a1d91c9d60c8a2099ba51e",
			1000: "sha256:318aff9efc1375c3cc5395960464d44d9a16daf69a87ffb809fca2f82d933394",
		},
	}[runtime.GOARCH]
	if !ok {
		t.Fatalf("no digests of %s images are written down here", runtime.GOARCH)
	}
	for size, want := range known {
		path := filepath.Join(t.TempDir(), "binary")
		if err := os.WriteFile(path, bytes.Repeat([]byte{7}, size), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ImageDigest(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%d bytes: %s, want %s", size, got, want)
		}
	}
}

func TestLayerIsATar(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "binary")
	binary := bytes.Repeat([]byte("worker"), 321)
	if err := os.WriteFile(path, binary, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blobs, err := makeImage(f)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(blobs.layerReader(bytes.NewReader(binary)))
	if err != nil || digest.FromBytes(layer) != blobs.layer.Digest || int64(len(layer)) != blobs.layer.Size {
		t.Fatalf("the layer's descriptor is not the layer's: %v", err)
	}
	seen := 0
	for r := tar.NewReader(bytes.NewReader(layer)); ; seen++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s depends on who makes it, and when: %+v", h.Name, h)
		}
		if h.Name != binaryName {
			continue
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, binary) || h.Mode != 0o555 {
			t.Errorf("the binary is not in the layer: %v, mode %o", err, h.Mode)
		}
	}
	if seen != len(rootDirs)+1 {
		t.Errorf("the layer has %d entries", seen)
	}
}

// TestPrepare: the image is in the content store as an image that containerd
// can read, under the digest that was foretold.
func TestPrepare(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	l := launcher(b)
	want, err := ImageDigest(b.Image.Path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := l.Prepare(b.Context(), b.Image); err != nil || got != want {
				t.Errorf("prepared %s, want %s (%v)", got, want, err)
			}
		})
	}
	wg.Wait()
	record, err := l.client.ImageService().Get(b.Context(), imageName(b.Image))
	if err != nil || record.Target.Digest.String() != want {
		t.Fatalf("image %+v, %v", record, err)
	}
	store := l.client.ContentStore()
	err = images.Walk(b.Context(), images.ChildrenHandler(store), record.Target)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := images.Manifest(b.Context(), store, record.Target, nil)
	if err != nil || len(manifest.Layers) != 1 {
		t.Fatalf("manifest %+v, %v", manifest, err)
	}
	layer, err := content.ReadBlob(b.Context(), store, manifest.Layers[0])
	if err != nil || digest.FromBytes(layer) != manifest.Layers[0].Digest {
		t.Fatal(err)
	}
	stored, err := os.Stat(b.Image.Path)
	if err != nil {
		t.Fatal(err)
	}
	linked, err := os.Stat(filepath.Join(l.rootfs(b.Image.Digest), binaryName))
	if err != nil || !os.SameFile(stored, linked) {
		t.Errorf("the binary is not linked: %v", err)
	}
}

// TestImageIsForeseen: the digest of an image is known before the image is made,
// and asking for it makes nothing.
func TestImageIsForeseen(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	l := launcher(b)
	binary := []byte("another worker")
	image := b.Image
	image.Digest = digest.FromBytes(binary).Encoded()
	image.Path = filepath.Join(t.TempDir(), image.Digest)
	if err := os.WriteFile(image.Path, binary, 0o555); err != nil {
		t.Fatal(err)
	}
	want, err := ImageDigest(image.Path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is remembered
		if got, err := l.ImageDigest(b.Context(), image); err != nil || got != want {
			t.Errorf("foreseen %s, want %s (%v)", got, want, err)
		}
	}
	if _, err := l.client.ImageService().Get(b.Context(), imageName(image)); !errdefs.IsNotFound(err) {
		t.Errorf("there is an image: %v", err)
	}
	if rootfsReady(l.rootfs(image.Digest)) {
		t.Error("there is a root folder")
	}
	if got, err := l.Prepare(b.Context(), image); err != nil || got != want {
		t.Errorf("prepared %s, foreseen %s (%v)", got, want, err)
	}
	if got, err := l.ImageDigest(b.Context(), image); err != nil || got != want {
		t.Errorf("%s once it is prepared, want %s (%v)", got, want, err)
	}
}

func TestPrepareRefusesOtherBytes(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	image := b.Image
	image.Digest = digest.FromString("other").Encoded()
	if _, err := b.Launcher.Prepare(b.Context(), image); !errors.Is(err, worker.ErrCorrupt) {
		t.Errorf("prepared: %v", err)
	}
	if _, err := b.Launcher.ImageDigest(b.Context(), image); !errors.Is(err, worker.ErrCorrupt) {
		t.Errorf("foreseen: %v", err)
	}
	spec := b.Spec()
	spec.Image = image
	if err := b.Launcher.Create(b.Context(), spec); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("created: %v", err)
	}
}

// TestRootfs: complete or not at all, and swept after a crash.
func TestRootfs(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "rootfs")
	path := filepath.Join(dir, "digest")
	if err := makeRootfs(path, filepath.Join(dir, "no such binary")); err == nil {
		t.Fatal("made without a binary")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatalf("left %v, %v", entries, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, unfinished+"1", "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "binary")
	if err := os.WriteFile(binary, []byte("x"), 0o555); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := makeRootfs(path, binary); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweepRootfs(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "digest" {
		t.Fatalf("%v, %v", entries, err)
	}
	info, err := os.Stat(filepath.Join(path, "tmp"))
	if err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("tmp is %v, %v", info.Mode(), err)
	}
}

// TestRootfsHeals: a folder without its binary is not ready, and is completed
// where it is, under the mounts of those who use it.
func TestRootfsHeals(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	l := launcher(b)
	path := l.rootfs(b.Image.Digest)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{binaryName, "tmp"} {
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	spec := b.Spec()
	if err := l.Create(b.Context(), spec); !errors.Is(err, worker.ErrInvalid) {
		t.Fatalf("created from a folder without its binary: %v", err)
	}
	if _, err := l.Prepare(b.Context(), b.Image); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the folder was replaced: %v", err)
	}
	if info, err := os.Stat(filepath.Join(path, "tmp")); err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("tmp is %v, %v", info, err)
	}
	b.Start(spec)
	if entries, err := os.ReadDir(l.rootfsDir()); err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
}
