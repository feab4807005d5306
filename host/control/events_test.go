package control_test

import (
	"errors"
	"io"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// TestStreamEvents passes on all events, more than one message has, and ends a
// stream that follows with the host.
func TestStreamEvents(t *testing.T) {
	s := serve(t, &backend{}, filepath.Join(privateDir(t), "s"))
	h := dial(t, s.socket)
	read := func(r *hostv1.StreamEventsRequest, n int) (all []*hostv1.Event, err error) {
		stream, err := h.StreamEvents(t.Context(), r)
		for err == nil && (n == 0 || len(all) < n) {
			var batch *hostv1.StreamEventsResponse
			batch, err = stream.Recv()
			all = append(all, batch.GetEvents()...)
		}
		return all, err
	}
	all, err := read(&hostv1.StreamEventsRequest{Worker: "nora"}, 0)
	if !errors.Is(err, io.EOF) || len(all) != 300 || all[299].GetLogIndex() != 299 || all[0].GetWorkerName() != "nora" || all[7].GetAt() != "1970-01-01T00:00:07Z" {
		t.Errorf("%d events, %v", len(all), err)
	}
	if all, err := read(&hostv1.StreamEventsRequest{SinceUnixMs: 290_000}, 0); !errors.Is(err, io.EOF) || len(all) != 10 {
		t.Errorf("since: %d events, %v", len(all), err)
	}
	if all, err := read(&hostv1.StreamEventsRequest{Follow: true}, 300); err != nil || len(all) != 300 {
		t.Errorf("followed: %d events, %v", len(all), err)
	}
	if _, err := read(&hostv1.StreamEventsRequest{Worker: "unknown"}, 0); status.Code(err) != codes.NotFound {
		t.Errorf("unknown: %v", err)
	}
}
