package control

import (
	"context"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Collector deletes what nothing needs any more.
type Collector interface {
	// CollectGarbage says what it deleted, or in a dry run would delete.
	CollectGarbage(ctx context.Context, dryRun bool) ([]Garbage, error)
}

// Garbage is one thing that nothing needs.
type Garbage struct {
	Kind   string // image, rootfs, binary, stage, log or aside
	Name   string
	Bytes  int64 // that go with it
	Reason string
}

func (s *service) CollectGarbage(ctx context.Context, r *hostv1.CollectGarbageRequest) (*hostv1.CollectGarbageResponse, error) {
	found, err := s.Collector.CollectGarbage(ctx, r.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &hostv1.CollectGarbageResponse{Garbage: convert(found, func(g Garbage) *hostv1.Garbage {
		return &hostv1.Garbage{Kind: g.Kind, Name: g.Name, Bytes: g.Bytes, Reason: g.Reason}
	})}, nil
}
