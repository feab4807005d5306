package sdk

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Call asks some worker of another type for a task, as in Call(ctx,
// "ledger.append", in), and waits for its output. It has to have been granted, as
// call:TYPE, and works within a task only: ctx is that task's, or made from it, and
// its time bounds the call. The worker signs the envelope with its own key; the
// host checks, records and routes it as any client's, and the answer's signature is
// checked here. input is marshalled as JSON. An error of the other worker's, or a
// refusal, fails the caller's task with the same code if it is returned as it is.
func (w *Worker) Call(ctx context.Context, kind string, input any) (json.RawMessage, error) {
	output, err := w.call(ctx, kind, input)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", kind, err)
	}
	return output, nil
}

func (w *Worker) call(ctx context.Context, kind string, input any) (json.RawMessage, error) {
	info := Call(ctx)
	if info.EnvelopeID == "" {
		return nil, errors.New("not within a task")
	}
	payload, err := json.Marshal(input)
	if err != nil {
		return nil, fmt.Errorf("encode input: %w", err)
	}
	typeName, _, _ := strings.Cut(kind, ".")
	serial, err := w.ask(ctx, http.MethodGet, wire.PickPath+typeName, nil, nil)
	if err != nil {
		return nil, err
	}
	env, err := envelope.New(w.key, envelope.ClientID(w.identity.PublicKey),
		&workerv1.Header{Recipient: string(serial), Kind: kind, Glyph: info.Glyph}, payload)
	if err != nil {
		return nil, err
	}
	text, err := proto.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("encode envelope: %w", err)
	}
	header := http.Header{wire.DoorTask: {fmt.Sprintf("%s/%d", info.EnvelopeID, info.Attempt)}}
	if due, ok := ctx.Deadline(); ok {
		header.Set(wire.DoorTimeout, strconv.FormatInt(max(time.Until(due).Milliseconds(), 1), 10))
	}
	answer, err := w.ask(ctx, http.MethodPost, wire.CallPath, header, text)
	if err != nil {
		return nil, err
	}
	return readAnswer(env, answer)
}

// ask puts one question to the host.
func (w *Worker) ask(ctx context.Context, method, path string, header http.Header, body []byte) ([]byte, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return w.dialDoor(ctx) },
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, "http://host"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, header)
	resp, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, denied(resp)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxMessage+1))
	if err == nil && len(answer) > wire.MaxMessage {
		err = errors.New("the answer is too large")
	}
	return answer, err
}

// denied is the host's no.
func denied(resp *http.Response) error {
	reason, _ := io.ReadAll(io.LimitReader(resp.Body, maxDenial)) // as far as it can be read
	code := resp.Header.Get(wire.DoorCode)
	err := fmt.Errorf("the host refuses: %s (%s)", strings.TrimSpace(string(reason)), code)
	if strings.HasSuffix(code, "_not_granted") {
		err = fmt.Errorf("%w: %w", err, ErrNotGranted)
	}
	return Errorf(code, "%w", err)
}

// readAnswer is the output that an answer carries, if the worker that was asked
// has signed it for this very question.
func readAnswer(env *workerv1.Envelope, answer []byte) (json.RawMessage, error) {
	resp := &hostv1.SendResponse{}
	if err := proto.Unmarshal(answer, resp); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	asked, err := envelope.Parse(env)
	if err != nil {
		return nil, err
	}
	h, err := envelope.Parse(resp.GetResult())
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(resp.GetPublicKey()) != ed25519.PublicKeySize {
		return nil, errors.New("read answer: it names no key")
	}
	if err := envelope.Verify(resp.GetResult(), h, resp.GetPublicKey()); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if h.Sender != asked.Recipient || h.Recipient != asked.Sender || h.InReplyTo != asked.Id || h.Kind != asked.Kind {
		return nil, errors.New("read answer: it answers another question")
	}
	return output(h.Status, resp.GetResult().GetPayload())
}

// output is a result's payload, or why there is none.
func output(status workerv1.ResultStatus, payload []byte) (json.RawMessage, error) {
	switch status {
	case workerv1.ResultStatus_RESULT_STATUS_OK:
		return payload, nil
	case workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED:
		return nil, errors.New("read answer: it is no result")
	}
	var said failure
	if json.Unmarshal(payload, &said) != nil || said.Code == "" {
		said = failure{Code: codeFailed, Error: "the other worker gave no reason"}
	}
	return nil, Errorf(said.Code, "%s", said.Error)
}
