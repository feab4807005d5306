package worker

import (
	"errors"
	"fmt"
)

// The families of failure. Layers wrap them with %w and a phrase; the control
// API maps each to one gRPC code (see host/control).
var (
	ErrInvalid     = errors.New("not valid")
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict")
	ErrUnavailable = errors.New("unavailable")
	ErrExhausted   = errors.New("exhausted")
	ErrRefused     = errors.New("refused")
	ErrDeadline    = errors.New("deadline exceeded")
	ErrCorrupt     = errors.New("corrupt")
)

// Refusal is a "no" with a stable code: programs read Code, people read Reason.
type Refusal struct {
	Code   string // stable, snake_case, documented in docs/SECURITY.md
	Reason string
}

// Error says the reason and the code.
func (r *Refusal) Error() string { return fmt.Sprintf("refused: %s (%s)", r.Reason, r.Code) }

// Is makes every refusal an ErrRefused.
func (r *Refusal) Is(target error) bool { return target == ErrRefused }

// Refuse makes a refusal; the reason is formatted as by fmt.Sprintf.
func Refuse(code, reason string, args ...any) *Refusal {
	return &Refusal{Code: code, Reason: fmt.Sprintf(reason, args...)}
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint attaches advice on what to do about err. A nil err stays nil.
func Hint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{error: err, hint: hint}
}

// HintOf is the outermost advice attached to err, or "".
func HintOf(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	return ""
}
