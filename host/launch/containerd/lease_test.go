package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// collector has containerd collect its garbage before and after every call of a
// launcher, and every message of what it streams.
type collector struct {
	*client.Client // another one than the launcher's
	t              *testing.T
	times          atomic.Int32
}

// collect returns when containerd has deleted what nothing holds.
func (c *collector) collect() {
	ctx := context.Background()
	lease, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err == nil {
		err = c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		c.t.Errorf("collect garbage: %v", err)
	}
	c.times.Add(1)
}

func (c *collector) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			c.collect()
			err := invoke(ctx, method, req, reply, cc, opts...)
			c.collect()
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			return &collectedStream{s, c}, err
		}),
	}
}

type collectedStream struct {
	grpc.ClientStream
	*collector
}

func (s *collectedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.collect()
	return err
}

// TestCollectedMeanwhile: whenever containerd collects its garbage, it takes
// nothing of an image that is being made, nor of a worker that is made from it.
func TestCollectedMeanwhile(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	l := launcher(b)
	other, err := connect(l.site.address, l.site.namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c := &collector{Client: other, t: t}
	disturbed, err := client.New(l.site.address, client.WithDefaultNamespace(l.site.namespace), client.WithExtraDialOpts(c.options()))
	if err != nil {
		t.Fatal(err)
	}
	defer disturbed.Close()
	image := anotherImage(t, b)
	usual := l.client
	l.client = disturbed
	made, err := l.Prepare(b.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	n := c.times.Load()
	if n < 10 {
		t.Errorf("garbage was collected %d times only", n)
	}
	spec := b.Spec()
	spec.Image = image
	g := b.Start(spec)
	l.client = usual
	if all := c.times.Load(); all < n+4 {
		t.Errorf("garbage was collected %d times while the worker was made", all-n)
	}
	c.collect()
	g.Tell("ping")
	record, err := l.client.ImageService().Get(b.Context(), imageName(image))
	if err != nil || record.Target.Digest.String() != made {
		t.Fatalf("the image's record: %+v, %v", record, err)
	}
	binary, blobs, err := openImage(image)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for name, blob := range map[string]ocispec.Descriptor{"manifest": blobs.manifest, "config": blobs.config, "layer": blobs.layer} {
		if data, err := content.ReadBlob(b.Context(), l.client.ContentStore(), blob); err != nil || int64(len(data)) != blob.Size {
			t.Errorf("the image's %s: %d bytes, %v", name, len(data), err)
		}
	}
	if left, err := l.client.LeasesService().List(b.Context()); err != nil || len(left) > 0 {
		t.Errorf("leases left: %v, %v", left, err)
	}
}

// anotherImage is one of which nothing is in containerd yet: a test worker with some
// bytes after its end.
func anotherImage(t *testing.T, b *launchtest.Bench) launch.Image {
	t.Helper()
	data, err := os.ReadFile(b.Image.Path)
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, "another"...)
	sum := sha256.Sum256(data)
	image := b.Image
	image.Digest = hex.EncodeToString(sum[:])
	image.Path = filepath.Join(filepath.Dir(b.Image.Path), image.Digest)
	if err := os.WriteFile(image.Path, data, 0o555); err != nil {
		t.Fatal(err)
	}
	return image
}
