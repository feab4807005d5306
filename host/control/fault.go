package control

import (
	"context"
	"errors"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/worker"
)

// Domain marks the reasons in errors as this project's (google.rpc.ErrorInfo).
const Domain = "dals"

// families is the one table from errors to codes. The first match counts: a
// refusal by its own code comes before all (refusalCodes).
var families = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{worker.ErrRefused, codes.PermissionDenied, "refused"},
	{worker.ErrInvalid, codes.InvalidArgument, "invalid"},
	{worker.ErrNotFound, codes.NotFound, "not_found"},
	{worker.ErrConflict, codes.AlreadyExists, "conflict"},
	{worker.ErrExhausted, codes.ResourceExhausted, "exhausted"},
	{worker.ErrUnavailable, codes.Unavailable, "unavailable"},
	{worker.ErrDeadline, codes.DeadlineExceeded, "deadline"},
	{worker.ErrCorrupt, codes.DataLoss, "corrupt"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "deadline"},
	{context.Canceled, codes.Canceled, "canceled"},
}

// refusalCodes are the refusals that are not a matter of permission.
var refusalCodes = map[string]codes.Code{
	"payload_too_large":  codes.InvalidArgument,
	"malformed":          codes.InvalidArgument,
	"payload_not_json":   codes.InvalidArgument,
	"schema_mismatch":    codes.InvalidArgument,
	"rate_limited":       codes.ResourceExhausted,
	"worker_unavailable": codes.Unavailable,
}

// classify finds the gRPC code and the stable reason of an error.
func classify(err error) (codes.Code, string) {
	var refusal *worker.Refusal
	if errors.As(err, &refusal) {
		if code, ok := refusalCodes[refusal.Code]; ok {
			return code, refusal.Code
		}
		return codes.PermissionDenied, refusal.Code
	}
	for _, f := range families {
		if errors.Is(err, f.err) {
			return f.code, f.reason
		}
	}
	return codes.Internal, "internal"
}

// toStatus is err as it travels: code, text, and an ErrorInfo with the reason
// and the hint.
func toStatus(err error) error {
	code, reason := classify(err)
	info := &errdetails.ErrorInfo{Reason: reason, Domain: Domain}
	if hint := worker.HintOf(err); hint != "" {
		info.Metadata = map[string]string{"hint": hint}
	}
	s := status.New(code, err.Error())
	if detailed, failed := s.WithDetails(info); failed == nil {
		s = detailed
	}
	return s.Err()
}

// faults turns the errors of handlers into statuses. Callers are told theirs;
// only what the host must answer for is logged.
type faults struct{ log hclog.Logger }

func (f faults) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	resp, err := handle(ctx, req)
	return resp, f.translate(info.FullMethod, err)
}

func (f faults) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return f.translate(info.FullMethod, handle(srv, stream))
}

func (f faults) translate(method string, err error) error {
	if err == nil {
		return nil
	}
	if code, _ := classify(err); code == codes.Internal || code == codes.DataLoss {
		f.log.Error("call failed", "method", method, "error", err)
	}
	return toStatus(err)
}
