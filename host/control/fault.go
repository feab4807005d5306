package control

import (
	"cmp"
	"context"
	"errors"
	"path"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

// Domain marks the reasons in errors as this project's (google.rpc.ErrorInfo).
const Domain = "dals"

// families is the one table from errors to codes. The first match counts: a
// refusal's own code (see refusals) comes before all.
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

// refusals are the codes of the gate and the broker, in the order of their
// checks, and what a sender can do about each. A code that is not here is a
// PermissionDenied.
var refusals = map[string]struct {
	code codes.Code
	hint string
}{
	"payload_too_large":  {codes.InvalidArgument, "send at most 4 MiB"},
	"rate_limited":       {codes.ResourceExhausted, "send again in a second"},
	"malformed":          {codes.InvalidArgument, "make envelopes with dals-host send or sdk/client"},
	"recipient_unknown":  {codes.PermissionDenied, "run dals-host workers to see those that there are"},
	"recipient_retired":  {codes.PermissionDenied, "run dals-host workers to see those that live"},
	"sender_unknown":     {codes.PermissionDenied, "make and enrol a key: dals-host client add NAME --key-out FILE"},
	"sender_revoked":     {codes.PermissionDenied, "make and enrol a key: dals-host client add NAME --key-out FILE"},
	"expired":            {codes.PermissionDenied, "sign it again; if it was just signed, compare the clocks"},
	"not_yet_valid":      {codes.PermissionDenied, "compare the clocks of sender and host"},
	"ttl_too_long":       {codes.PermissionDenied, "sign it for at most 5 minutes"},
	"replayed":           {codes.PermissionDenied, "sign a new one: each may be sent once"},
	"bad_proof":          {codes.PermissionDenied, "it was changed, or signed with another key: sign it again"},
	"kind_unknown":       {codes.PermissionDenied, "run dals-host types to see what workers can do"},
	"payload_not_json":   {codes.InvalidArgument, "a payload is one JSON value, as in {\"message\": \"hello\"}"},
	"schema_mismatch":    {codes.InvalidArgument, "run dals-host types --json to see the input_schema"},
	"overloaded":         {codes.ResourceExhausted, "send again when the worker has answered some of what it has"},
	"worker_unavailable": {codes.Unavailable, "run dals-host worker to see its state, and send again"},
}

// storage are the faults of the disk below the host, wherever they come from.
// They heal without a restart.
var storage = []struct {
	errno syscall.Errno
	hint  string
}{
	{syscall.ENOSPC, "free some space where the data folder is; the host goes on by itself"},
	{syscall.EDQUOT, "raise the quota where the data folder is; the host goes on by itself"},
	{syscall.EROFS, "the data folder cannot be written any more: see dmesg for why, and make it writable; the host goes on by itself"},
	{syscall.EIO, "the disk below the data folder fails: see dmesg"},
}

// storageHint is what to do about a fault of the disk; empty for other errors.
func storageHint(err error) string {
	for _, s := range storage {
		if errors.Is(err, s.errno) {
			return s.hint
		}
	}
	return ""
}

// classify finds the gRPC code and the stable reason of an error.
func classify(err error) (codes.Code, string) {
	if refusal, ok := errors.AsType[*worker.Refusal](err); ok {
		if known, ok := refusals[refusal.Code]; ok {
			return known.code, refusal.Code
		}
		return codes.PermissionDenied, refusal.Code
	}
	if storageHint(err) != "" {
		return codes.Unavailable, "unavailable"
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
	hint := cmp.Or(storageHint(err), worker.HintOf(err), refusals[reason].hint)
	if hint != "" {
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
	method := path.Base(info.FullMethod)
	failpoint.Hit("control", method, "before")
	resp, err := handle(ctx, req)
	failpoint.Hit("control", method, "after")
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
