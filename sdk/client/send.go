package client

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dals-host/dals-host/sdk/envelope"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

const (
	// defaultTimeout is the host's for a task without one.
	defaultTimeout = 30 * time.Second
	// answerTime is what the host gets beyond a task's time to say how it ended,
	// and to say who a worker is.
	answerTime = 10 * time.Second
)

// SendRequest asks a worker to do one task.
type SendRequest struct {
	// Worker is a name or a serial.
	Worker string
	Kind   string // <type>.<verb>
	// Input is marshalled as the payload; json.RawMessage and []byte go as they
	// are, nil as {}.
	Input any
	// Timeout bounds the task, from its admission; zero means 30 s.
	Timeout time.Duration
}

// The ways a task ends.
const (
	StatusOK      = "ok"
	StatusFailed  = "failed"  // it ran and failed
	StatusRefused = "refused" // the worker would not run it
	// StatusUnknown is of an envelope that was sent and whose end was not learnt.
	StatusUnknown = "unknown"
)

// Result is a verified result.
type Result struct {
	ID           string `json:"id"` // of the envelope that asked
	WorkerSerial string `json:"worker_serial"`
	Kind         string `json:"kind"`
	Status       string `json:"status"`
	// Result is the task's output; of a task that is not ok, {"code","error"}.
	Result     json.RawMessage `json:"result"`
	DurationMS int64           `json:"duration_ms"`
	// SignedBy is the worker's public key, under which the result was verified.
	SignedBy string `json:"signed_by"`
	// LogIndex is the record's entry of the result.
	LogIndex uint64 `json:"log_index"`
}

// Send signs a request, sends it and waits for the verified result. A task that
// failed or was refused by its worker gives its Result and a *TaskError; what
// the host refuses, or a result that does not verify, gives an *Error. Once the
// envelope was sent its ID is in every Result; StatusUnknown says that it may
// have been admitted, and the error names it.
func (c *Client) Send(ctx context.Context, r SendRequest) (Result, error) {
	env, err := c.sign(ctx, r)
	if err != nil {
		return Result{}, fmt.Errorf("send %.63s: %w", r.Kind, err)
	}
	result, err := c.exchange(ctx, env, r.Timeout)
	if err != nil {
		return result, fmt.Errorf("send %.63s: %w", r.Kind, err)
	}
	return result, nil
}

// Sign makes the signed envelope of a request and sends nothing. It may be sent
// once, within its 30 s.
func (c *Client) Sign(ctx context.Context, r SendRequest) (*workerv1.Envelope, error) {
	env, err := c.sign(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("sign %.63s: %w", r.Kind, err)
	}
	return env, nil
}

// SendEnvelope sends an envelope as it is and waits, as Send does, for the
// result: it needs no key, since the envelope is signed already.
func (c *Client) SendEnvelope(ctx context.Context, env *workerv1.Envelope, timeout time.Duration) (Result, error) {
	result, err := c.exchange(ctx, env, timeout)
	if err != nil {
		return result, fmt.Errorf("send envelope: %w", err)
	}
	return result, nil
}

func (c *Client) sign(ctx context.Context, r SendRequest) (*workerv1.Envelope, error) {
	if len(c.key) != ed25519.PrivateKeySize {
		return nil, &Error{Code: CodeInvalid, Message: "there is no key to sign with", Hint: "run dals-host client add"}
	}
	payload, err := encode(r.Input)
	if err != nil {
		return nil, fmt.Errorf("encode input: %w", err)
	}
	if payload == nil {
		payload = []byte("{}")
	}
	recipient, err := c.resolve(ctx, r.Worker)
	if err != nil {
		return nil, err
	}
	id := envelope.ClientID(c.key.Public().(ed25519.PublicKey))
	env, err := envelope.New(c.key, id, &workerv1.Header{Recipient: recipient, Kind: r.Kind}, payload)
	if err != nil {
		return nil, signFault(err)
	}
	return env, nil
}

// resolve finds the recipient that a name stands for. Serials and pools are
// recipients already: they are signed without asking the host.
func (c *Client) resolve(ctx context.Context, ref string) (string, error) {
	if strings.HasPrefix(ref, envelope.PoolPrefix) || envelope.IsSerial(ref) {
		return ref, nil
	}
	return c.find(ctx, ref)
}

// exchange sends env and verifies what comes back.
func (c *Client) exchange(ctx context.Context, env *workerv1.Envelope, timeout time.Duration) (Result, error) {
	wait := timeout
	if wait <= 0 {
		wait = defaultTimeout
	}
	request, malformed := envelope.Parse(env)
	if err := c.prepare(ctx, request.GetRecipient()); err != nil {
		return Result{}, err
	}
	// A host that hangs must not hang its callers.
	bounded, cancel := context.WithTimeout(ctx, wait+answerTime)
	defer cancel()
	resp, err := c.host.Send(bounded, &hostv1.SendRequest{Envelope: env, TimeoutMs: milliseconds(timeout)})
	if err != nil {
		return unanswered(request, c.fault(ctx, err))
	}
	if malformed != nil {
		return Result{}, signFault(malformed)
	}
	key, err := c.keyOf(ctx, resp.GetWorkerSerial())
	if err != nil {
		return unanswered(request, badResult(err))
	}
	result, err := read(request, resp, key)
	if result.Status == "" {
		return unanswered(request, err)
	}
	return result, err
}

// prepare learns the recipient's key before anything is sent to it. A pool's
// worker is not known yet; that there is no such worker is for the gate to say,
// which writes it down.
func (c *Client) prepare(ctx context.Context, recipient string) error {
	if !envelope.IsSerial(recipient) {
		return nil
	}
	_, err := c.keyOf(ctx, recipient)
	if said, ok := errors.AsType[*Error](err); ok && said.Code == CodeNotFound {
		return nil
	}
	return err
}

// unanswered is what is known of an envelope that was sent and got no result. A
// refusal is certain; else the envelope may be in the record.
func unanswered(request *workerv1.Header, err error) (Result, error) {
	id := request.GetId()
	result := Result{ID: id}
	said, ok := errors.AsType[*Error](err)
	if id == "" || ok && !said.uncertain() {
		return result, err
	}
	result.Kind, result.Status = request.GetKind(), StatusUnknown
	if envelope.IsSerial(request.GetRecipient()) {
		result.WorkerSerial = request.GetRecipient()
	}
	return result, fmt.Errorf("envelope %s may have been admitted: dals-host vault prove %s tells: %w", id, id, err)
}
