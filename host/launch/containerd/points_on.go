//go:build failpoint

package containerd

import (
	"context"
	"path"
	"slices"

	"google.golang.org/grpc"

	"github.com/dals-host/dals-host/host/internal/failpoint"
)

// reads are the calls that change nothing.
var reads = []string{"Get", "List", "Version", "Wait", "Info", "Stats", "Status", "ListStream"}

// pointOptions put a point before and after every call by which containerd
// changes anything, so that none can be forgotten.
func pointOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			hit(method, "before")
			err := invoke(ctx, method, req, reply, cc, opts...)
			hit(method, "after")
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			hit(method, "before")
			s, err := open(ctx, desc, cc, method, opts...)
			return &pointStream{s, method}, err
		}),
	}
}

// pointStream hits the second point with the last answer.
type pointStream struct {
	grpc.ClientStream
	method string
}

func (s *pointStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil { // io.EOF among them
		hit(s.method, "after")
	}
	return err
}

// hit names the point of /containerd.services.tasks.v1.Tasks/Create
// containerd/Tasks.Create.
func hit(method, when string) {
	if call := path.Base(method); !slices.Contains(reads, call) {
		failpoint.Hit("containerd", path.Ext(path.Dir(method))[1:]+"."+call, when)
	}
}
