package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/dals-host/dals-host/host/internal/failpoint"
)

// clear deletes the host's namespace in another's containerd. Where somebody else
// has put something of another kind into it, it stays.
func (s *shared) clear(ctx context.Context) error {
	failpoint.Hit("containerd", "clear", "before")
	if err := errors.Join(s.clearImages(ctx), s.clearIngests(ctx)); err != nil {
		return err
	}
	if err := s.collect(ctx); err != nil {
		return err
	}
	err := s.client.NamespaceService().Delete(ctx, s.namespace)
	if kindOf(err)(errdefs.IsFailedPrecondition) {
		s.log.Warn("namespace stays in containerd: there is something in it that is not the host's", "namespace", s.namespace, "error", err)
		err = nil
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("delete namespace: %w", family(err))
	}
	failpoint.Hit("containerd", "clear", "after")
	return nil
}

func (s *shared) clearImages(ctx context.Context) error {
	images := s.client.ImageService()
	ours, err := images.List(ctx, fmt.Sprintf("labels.%q", labelHost))
	if err != nil {
		return fmt.Errorf("list images: %w", family(err))
	}
	for _, image := range ours {
		if err := images.Delete(ctx, image.Name); err != nil && !isNotFound(err) {
			return fmt.Errorf("delete image: %w", family(err))
		}
	}
	return nil
}

// clearIngests gives up the blobs of which a host that died has written a part.
func (s *shared) clearIngests(ctx context.Context) error {
	store := s.client.ContentStore()
	half, err := store.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list ingests: %w", family(err))
	}
	for _, ingest := range half {
		if err := store.Abort(ctx, ingest.Ref); err != nil && !isNotFound(err) {
			return fmt.Errorf("abort ingest: %w", family(err))
		}
	}
	return nil
}

// collect deletes all leases, and has containerd delete what nothing names any
// more: it does that when a lease goes.
func (s *shared) collect(ctx context.Context) error {
	service := s.client.LeasesService()
	if _, err := service.Create(ctx, leases.WithRandomID()); err != nil {
		return fmt.Errorf("collect garbage: %w", family(err))
	}
	return sweepLeases(ctx, service)
}
