package client

import (
	"context"
	"fmt"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Garbage is one thing on the host that nothing needs any more.
type Garbage struct {
	Kind   string `json:"kind"` // image, rootfs, binary, stage, log or aside
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	Reason string `json:"reason"`
}

// CollectGarbage has the host delete what nothing needs any more and says what
// that was, or with dryRun what it would be.
func (c *Client) CollectGarbage(ctx context.Context, dryRun bool) ([]Garbage, error) {
	resp, err := c.host.CollectGarbage(ctx, &hostv1.CollectGarbageRequest{DryRun: dryRun})
	if err != nil {
		return nil, fmt.Errorf("collect garbage: %w", c.fault(ctx, err))
	}
	return convert(resp.GetGarbage(), func(g *hostv1.Garbage) Garbage {
		return Garbage{Kind: g.GetKind(), Name: g.GetName(), Bytes: g.GetBytes(), Reason: g.GetReason()}
	}), nil
}
