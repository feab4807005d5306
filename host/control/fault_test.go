package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// TestFaults holds the table from errors to codes.
func TestFaults(t *testing.T) {
	b := &backend{}
	h := host(t, b)
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{worker.ErrInvalid, codes.InvalidArgument, "invalid"},
		{worker.ErrNotFound, codes.NotFound, "not_found"},
		{worker.ErrConflict, codes.AlreadyExists, "conflict"},
		{worker.ErrUnavailable, codes.Unavailable, "unavailable"},
		{worker.ErrExhausted, codes.ResourceExhausted, "exhausted"},
		{worker.ErrDeadline, codes.DeadlineExceeded, "deadline"},
		{worker.ErrCorrupt, codes.DataLoss, "corrupt"},
		{context.Canceled, codes.Canceled, "canceled"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "deadline"},
		{errors.New("a bug"), codes.Internal, "internal"},
		{status.Error(codes.NotFound, "of somebody else"), codes.Internal, "internal"},
		{worker.Refuse("replayed", "seen"), codes.PermissionDenied, "replayed"},
		{worker.Refuse("sender_unknown", "who"), codes.PermissionDenied, "sender_unknown"},
		{worker.Refuse("schema_mismatch", "no"), codes.InvalidArgument, "schema_mismatch"},
		{worker.Refuse("payload_not_json", "no"), codes.InvalidArgument, "payload_not_json"},
		{worker.Refuse("payload_too_large", "no"), codes.InvalidArgument, "payload_too_large"},
		{worker.Refuse("malformed", "no"), codes.InvalidArgument, "malformed"},
		{worker.Refuse("rate_limited", "no"), codes.ResourceExhausted, "rate_limited"},
		{worker.Refuse("overloaded", "no"), codes.ResourceExhausted, "overloaded"},
		{worker.Refuse("worker_unavailable", "no"), codes.Unavailable, "worker_unavailable"},
	} {
		b.status = func() (control.Status, error) {
			return control.Status{}, worker.Hint(fmt.Errorf("do it: %w", c.err), "try again")
		}
		_, err := h.GetStatus(t.Context(), &hostv1.GetStatusRequest{})
		s := status.Convert(err)
		if s.Code() != c.code || s.Message() != "do it: "+c.err.Error() || len(s.Details()) != 1 {
			t.Errorf("%v came as %v with %v", c.err, err, s.Details())
			continue
		}
		info, ok := s.Details()[0].(*errdetails.ErrorInfo)
		if !ok || info.GetReason() != c.reason || info.GetDomain() != "dals" || info.GetMetadata()["hint"] != "try again" {
			t.Errorf("%v came with %v", c.err, s.Details()[0])
		}
	}
}

// TestRefusalsAreHinted: a refusal says what to do, unless its own hint knows
// better, and other errors with the same reason get none.
func TestRefusalsAreHinted(t *testing.T) {
	b := &backend{}
	h := host(t, b)
	for want, err := range map[string]error{
		"sign a new one: each may be sent once": worker.Refuse("replayed", "seen"),
		"wait":                                  worker.Hint(worker.Refuse("replayed", "seen"), "wait"),
		"":                                      worker.Refuse("of_tomorrow", "no"),
	} {
		b.status = func() (control.Status, error) { return control.Status{}, err }
		_, failed := h.GetStatus(t.Context(), &hostv1.GetStatusRequest{})
		info, ok := status.Convert(failed).Details()[0].(*errdetails.ErrorInfo)
		if !ok || info.GetMetadata()["hint"] != want {
			t.Errorf("%v came with %v, want hint %q", err, info, want)
		}
	}
}

// told is the reason and the hint of an error as it travelled.
func told(err error) (reason, hint string) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), info.GetMetadata()["hint"]
		}
	}
	return "", ""
}
