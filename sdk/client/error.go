package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/sdk/envelope"
)

// Error is a no: of the host, of its gate, or of this package.
type Error struct {
	// Code is one of the constants, or one that a newer host has besides.
	Code    string
	Message string
	// Hint says what to do about it; it may be empty.
	Hint string

	cause error
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause where there is one: of what the host says, a gRPC status.
func (e *Error) Unwrap() error { return e.cause }

// uncertain says that the error leaves open what became of an envelope.
func (e *Error) uncertain() bool {
	switch e.Code {
	case CodeUnavailable, CodeDeadline, CodeCorrupt, CodeInternal, CodeCanceled, CodeBadResult:
		return true
	}
	return false
}

// TaskError is the worker's own, signed word that a task has no output. Send and
// SendEnvelope give it beside the verified Result, whose Status says which of two
// it is: StatusRefused, where the worker did not run the task, or StatusFailed,
// where the task ended without an output. What the host refuses, or loses, is an
// *Error.
type TaskError struct {
	// Code is of a failure the one that the task's author gave (sdk.Errorf), else
	// CodeFailed, CodePanicked and so on; of a refusal one of the refusals' codes,
	// CodeBusy say. It is the Status where the worker gave none.
	Code string
	// Message is the worker's text as it is: mind control characters.
	Message string
}

// Error is the message and the code.
func (e *TaskError) Error() string { return fmt.Sprintf("%s (%s)", e.Message, e.Code) }

// fault is the error of a call as programs see it; ctx is the caller's.
func (c *Client) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := endOf(ctx); ended != nil {
		return ended
	}
	s := status.Convert(err)
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "dals" {
			return &Error{Code: info.GetReason(), Message: s.Message(), Hint: info.GetMetadata()["hint"], cause: err}
		}
	}
	// Without details it was not the host that answered, but the connection.
	switch s.Code() {
	case codes.Unavailable:
		return unreachable(c.socket, err)
	case codes.DeadlineExceeded:
		return &Error{Code: CodeDeadline, Message: "the host did not answer in time", cause: err}
	}
	return &Error{Code: CodeInternal, Message: s.Message(), cause: err}
}

// endOf is why ctx has ended, or nil. A context's own timer may come after the
// host's, which has the same deadline.
func endOf(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) && ctx.Err() == nil {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

func unreachable(socket string, err error) error {
	e := &Error{
		Code: CodeUnavailable, Message: fmt.Sprintf("no host answers at %s", socket),
		Hint: "start one: dals-host serve", cause: err,
	}
	if errors.Is(err, fs.ErrPermission) {
		e.Message = fmt.Sprintf("control socket %s is closed to this user", socket)
		e.Hint = "run the command as root or as the host's user"
	}
	return e
}

// signFault gives what is wrong with a request before it is sent the code that
// the gate would give it.
func signFault(err error) error {
	if format, ok := errors.AsType[*envelope.FormatError](err); ok {
		return &Error{Code: format.Code, Message: err.Error(), cause: err}
	}
	return fmt.Errorf("sign envelope: %w", err)
}
