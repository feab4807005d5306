package envelope

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// The codes of a FormatError.
const (
	CodeMalformed       = "malformed"
	CodePayloadTooLarge = "payload_too_large"
	CodeExpired         = "expired"
	CodeNotYetValid     = "not_yet_valid"
	CodeTTLTooLong      = "ttl_too_long"
)

// FormatError says why an envelope is refused for its form or its times.
// Programs read Code, people read Reason.
type FormatError struct {
	Code   string
	Reason string
}

// Error says the reason and the code.
func (e *FormatError) Error() string { return fmt.Sprintf("envelope: %s (%s)", e.Reason, e.Code) }

func malformed(format string, args ...any) *FormatError {
	return &FormatError{Code: CodeMalformed, Reason: fmt.Sprintf(format, args...)}
}

// PoolPrefix begins a recipient that is a worker type instead of one worker.
const PoolPrefix = "pool:"

// maxTime is the last millisecond of the year 9999, so that every time in a
// header can be written down and reckoned with.
const maxTime = 253402300799999

// maxToken bounds content_type and idempotency_key, in bytes.
const maxToken = 128

// form is compiled when it is first needed. A worker that starts needs none, and
// those with counts in them take their time.
func form(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

var (
	idForm     = form(`^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	serialForm = form(`^DMN-[A-Z]{2}-(?:0|[1-9][0-9]{0,5})-[0-9a-f]{8}-[0-9a-f]{5}$`)
	poolForm   = form(`^pool:[a-z][a-z0-9_]{0,31}$`)
	kindForm   = form(`^[a-z][a-z0-9_]{0,31}\.[a-z][a-z0-9_]{0,63}$`)
	tokenForm  = form(`^[ -~]*$`)
	glyphForm  = form(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)
)

// fill gives every zero field that has a default its default.
func fill(h *workerv1.Header) error {
	if h.Version == 0 {
		h.Version = Version
	}
	if h.Id == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("make envelope id: %w", err)
		}
		h.Id = id.String()
	}
	if h.IssuedUnixMs == 0 {
		h.IssuedUnixMs = time.Now().UnixMilli()
	}
	if h.ExpiresUnixMs == 0 {
		h.ExpiresUnixMs = h.IssuedUnixMs + DefaultTTL.Milliseconds()
	}
	if h.Encoding == workerv1.Encoding_ENCODING_UNSPECIFIED {
		h.Encoding = workerv1.Encoding_ENCODING_PLAIN
	}
	if h.ContentType == "" {
		h.ContentType = "application/json"
	}
	if h.Glyph == "" {
		h.Glyph = newGlyph()
	}
	return nil
}

// newGlyph starts a trace: a W3C traceparent that leaves sampling to others.
func newGlyph() string {
	var id [24]byte
	rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-00"
}

func checkSizes(header, payload []byte) error {
	if len(payload) > MaxPayload {
		return &FormatError{
			Code:   CodePayloadTooLarge,
			Reason: fmt.Sprintf("the payload has %d bytes, more than %d", len(payload), MaxPayload),
		}
	}
	if len(header) > MaxHeader {
		return malformed("the header has %d bytes, more than %d", len(header), MaxHeader)
	}
	return nil
}

// checkHeader says whether every field has its form. Reasons never repeat what
// the sender wrote: it may be anything.
func checkHeader(h *workerv1.Header) error {
	switch {
	case h.Version != Version:
		return malformed("version %d is not %d", h.Version, Version)
	case !idForm().MatchString(h.Id):
		return malformed("id is not a lower-case UUID")
	case !isParty(h.Sender):
		return malformed("sender is not a client id or a serial")
	case !kindForm().MatchString(h.Kind):
		return malformed("kind is not <type>.<verb>")
	case h.IssuedUnixMs <= 0 || h.ExpiresUnixMs > maxTime:
		return malformed("issued or expires is not a time")
	case h.ExpiresUnixMs <= h.IssuedUnixMs:
		return malformed("it expires before it is issued")
	case len(h.PayloadSha256) != sha256.Size:
		return malformed("payload_sha256 has %d bytes, not %d", len(h.PayloadSha256), sha256.Size)
	case h.Encoding != workerv1.Encoding_ENCODING_PLAIN:
		return malformed("encoding %d is not known", h.Encoding)
	case h.ContentType == "" || !isToken(h.ContentType):
		return malformed("content_type is not 1 to %d printable characters", maxToken)
	case !isToken(h.IdempotencyKey):
		return malformed("idempotency_key is not at most %d printable characters", maxToken)
	case !isGlyph(h.Glyph):
		return malformed("glyph is not a traceparent")
	}
	if h.Status == workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return checkRequest(h)
	}
	return checkResult(h)
}

// checkRequest checks the fields that tell a request from a result.
func checkRequest(h *workerv1.Header) error {
	switch {
	case !IsSerial(h.Recipient) && !poolForm().MatchString(h.Recipient):
		return malformed("recipient is not a serial or pool:<type>")
	case h.InReplyTo != "" || h.Attempt != 0:
		return malformed("in_reply_to or attempt is set, but no status")
	}
	return nil
}

// checkResult checks the fields that tell a result from a request.
func checkResult(h *workerv1.Header) error {
	switch {
	case workerv1.ResultStatus_name[int32(h.Status)] == "":
		return malformed("status %d is not known", h.Status)
	case !IsSerial(h.Sender):
		return malformed("the sender of a result is not a serial")
	case !isParty(h.Recipient):
		return malformed("the recipient of a result is not a client id or a serial")
	case !idForm().MatchString(h.InReplyTo):
		return malformed("in_reply_to is not a lower-case UUID")
	case h.Attempt == 0:
		return malformed("a result names no attempt")
	}
	return nil
}

func isToken(s string) bool { return len(s) <= maxToken && tokenForm().MatchString(s) }

// isGlyph is the W3C rule for version 00: neither id is all zeros.
func isGlyph(s string) bool {
	m := glyphForm().FindStringSubmatch(s)
	return m != nil && strings.Trim(m[1], "0") != "" && strings.Trim(m[2], "0") != ""
}

// FreshAt says whether h may be admitted at a moment: a host asks with its own
// clock, a worker with the stamp's admission. Clocks may differ by MaxSkew. The
// error is a *FormatError: ttl_too_long, not_yet_valid or expired.
func FreshAt(h *workerv1.Header, at time.Time) error {
	issued, expires := time.UnixMilli(h.GetIssuedUnixMs()), time.UnixMilli(h.GetExpiresUnixMs())
	switch {
	case expires.Sub(issued) > MaxTTL:
		return &FormatError{Code: CodeTTLTooLong, Reason: fmt.Sprintf("it is valid for longer than %s", MaxTTL)}
	case issued.Add(-MaxSkew).After(at):
		return &FormatError{Code: CodeNotYetValid, Reason: fmt.Sprintf("it is issued %s ahead of the clock", issued.Sub(at).Round(time.Millisecond))}
	case expires.Add(MaxSkew).Before(at):
		return &FormatError{Code: CodeExpired, Reason: fmt.Sprintf("it expired %s ago", at.Sub(expires).Round(time.Millisecond))}
	}
	return nil
}
