package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// The codes of results that are no output. An author's own codes come from
// Errorf.
const (
	codeMalformed      = "malformed"
	codeBadProof       = "bad_proof"
	codeBadStamp       = "bad_stamp"
	codeMisaddressed   = "misaddressed"
	codeExpired        = "expired"
	codeReplayed       = "replayed"
	codeKindUnknown    = "kind_unknown"
	codeSchemaMismatch = "schema_mismatch"
	codeBusy           = "busy"
	codeVaultIntegrity = "vault_integrity"

	codeFailed    = "failed"
	codePanicked  = "panicked"
	codeTooLarge  = "result_too_large"
	codeDropped   = "result_dropped"
	codeDeadline  = "deadline_exceeded"
	codeCancelled = "cancelled"
)

// pastDeadline refuses a task that nobody waits for any more.
const pastDeadline = "its deadline has passed"

// maxErrorText bounds what an error tells the sender, in bytes.
const maxErrorText = 4 << 10

// Errorf is an error that fails a task with a code of its own, for programs to
// rely on: 1 to 64 lower-case letters, digits or '_', starting with a letter; any
// other is told as "failed". The text is formatted as by fmt.Errorf, with %w too.
func Errorf(code, format string, args ...any) error {
	return &codedError{code: code, err: fmt.Errorf(format, args...)}
}

type codedError struct {
	code string
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// codeOf is the code under which a task's error is told. ctx is the task's.
func codeOf(ctx context.Context, err error) string {
	var coded *codedError
	switch {
	case errors.As(err, &coded) && isWord(coded.code, maxVerb):
		return coded.code
	case errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return codeDeadline
	case errors.Is(err, context.Canceled) && errors.Is(ctx.Err(), context.Canceled):
		return codeCancelled
	}
	return codeFailed
}

// failure is the payload of a result that is no output.
type failure struct {
	Code  string `json:"code"`
	Error string `json:"error"`
}

func encodeFailure(code, text string) []byte {
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	payload, err := json.Marshal(failure{Code: code, Error: strings.ToValidUTF8(text, "\uFFFD")})
	if err != nil {
		panic(err) // two valid strings always marshal
	}
	return payload
}
