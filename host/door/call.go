package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Exchange carries what workers ask of each other.
type Exchange interface {
	// Pick is a worker of a type, other than the caller, that can be called.
	Pick(ctx context.Context, caller worker.Worker, typeName string) (worker.Serial, error)
	// Call puts a worker's envelope through the gate and waits for its result.
	Call(ctx context.Context, r CallRequest) (*hostv1.SendResponse, error)
}

// CallRequest is one envelope that a worker sends.
type CallRequest struct {
	Caller     worker.Worker
	EnvelopeID string // of the task that the caller works on
	Attempt    uint32
	Envelope   *workerv1.Envelope
	Timeout    time.Duration // zero for the host's default
}

// The bounds of calls of one worker. Each is two or three commits.
const (
	callRate  = 100 // a second, in the long run
	callBurst = 200
)

// The codes of calls that are refused before the gate.
const (
	CallNotGranted  = "call_not_granted"
	CallRateLimited = "call_rate_limited"
	CallMalformed   = "malformed"
)

// pick answers with the serial of a worker that the caller may call.
func (o *door) pick(w http.ResponseWriter, r *http.Request) error {
	typeName := strings.TrimPrefix(r.URL.Path, wire.PickPath)
	if err := o.mayCall(typeName); err != nil {
		return err
	}
	serial, err := o.Exchange.Pick(r.Context(), o.worker, typeName)
	if err != nil {
		return err
	}
	_, _ = io.WriteString(w, string(serial)) //nolint:gosec // no browser asks; and who asked may have gone
	return nil
}

func (o *door) mayCall(typeName string) error {
	may := capability.Capability{Kind: capability.Call, Name: typeName}.String()
	if !slices.Contains(o.worker.Grants, may) {
		return o.refuse(CallNotGranted, "call:%.80q is not granted to this worker", typeName)
	}
	if !o.calls.Allow() {
		return o.refuse(CallRateLimited, "more than %d calls a second", callRate)
	}
	return nil
}

// call carries one envelope and answers with its result. Whether it was granted is
// for the gate to say: it sees who is called.
func (o *door) call(w http.ResponseWriter, r *http.Request) error {
	if !slices.ContainsFunc(o.worker.Grants, func(g string) bool { return strings.HasPrefix(g, string(capability.Call)+":") }) {
		return o.refuse(CallNotGranted, "nobody may be called by this worker")
	}
	request, err := readCall(w, r)
	if err != nil {
		return o.refuse(CallMalformed, "%v", err)
	}
	// The task's own time bounds the wait.
	conn := http.NewResponseController(w)
	if err := errors.Join(conn.SetReadDeadline(time.Time{}), conn.SetWriteDeadline(time.Time{})); err != nil {
		return err
	}
	request.Caller = o.worker
	reply, err := o.Exchange.Call(r.Context(), request)
	if err := conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	text, err := proto.Marshal(reply)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(text) //nolint:gosec // no browser asks; and who asked may have gone
	return nil
}

// readCall reads a worker's request as what it is: a stranger's bytes.
func readCall(w http.ResponseWriter, r *http.Request) (c CallRequest, err error) {
	if c.EnvelopeID, c.Attempt, err = readTask(r.Header.Get(wire.DoorTask)); err != nil {
		return c, err
	}
	if text := r.Header.Get(wire.DoorTimeout); text != "" {
		ms, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return c, errors.New("the timeout is not a number of milliseconds")
		}
		c.Timeout = time.Duration(ms) * time.Millisecond
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxMessage))
	if err != nil {
		return c, errors.New("the envelope did not come whole, or is too large")
	}
	c.Envelope = &workerv1.Envelope{}
	if proto.Unmarshal(body, c.Envelope) != nil {
		return c, errors.New("the body is not an Envelope message")
	}
	return c, nil
}

// readTask reads ID/ATTEMPT.
func readTask(text string) (id string, attempt uint32, err error) {
	id, number, ok := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || id == "" || len(id) > 64 {
		return "", 0, errors.New("the task is not an envelope's id, a slash and an attempt")
	}
	return id, uint32(n), nil
}

// refuse refuses a call before the gate has seen it, and counts that.
func (o *door) refuse(code, format string, args ...any) error {
	no := worker.Refuse(code, format, args...)
	o.refusals.add(no)
	return no
}

// isCall says whether a code is one of those that a door refuses calls with.
func isCall(code string) bool {
	return code == CallNotGranted || code == CallRateLimited || code == CallMalformed
}

// denyCall says no to a call. The gate has recorded what it refused.
func (o *door) denyCall(w http.ResponseWriter, err error) {
	code, status, reason := "unavailable", http.StatusServiceUnavailable, err.Error()
	refusal, refused := errors.AsType[*worker.Refusal](err)
	switch {
	case refused:
		code, status, reason = refusal.Code, http.StatusForbidden, refusal.Reason
	case errors.Is(err, worker.ErrDeadline), errors.Is(err, context.DeadlineExceeded):
		code, status = "deadline_exceeded", http.StatusGatewayTimeout
	case errors.Is(err, worker.ErrInvalid):
		code, status = CallMalformed, http.StatusBadRequest
	}
	w.Header().Set(wire.DoorCode, code)
	http.Error(w, reason, status)
}
