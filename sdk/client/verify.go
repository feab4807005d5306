package client

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/dals-host/dals-host/sdk/envelope"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// read verifies the answer to a request under the worker's key, and reads it.
func read(request *workerv1.Header, resp *hostv1.SendResponse, key ed25519.PublicKey) (Result, error) {
	header, err := verify(request, resp, key)
	if err == nil && header.GetStatus() == workerv1.ResultStatus_RESULT_STATUS_OK && !json.Valid(resp.GetResult().GetPayload()) {
		err = errors.New("its payload is not JSON")
	}
	if err != nil {
		return Result{}, badResult(err)
	}
	result := Result{
		ID: request.GetId(), WorkerSerial: resp.GetWorkerSerial(), Kind: request.GetKind(),
		Result:     document(resp.GetResult().GetPayload()),
		DurationMS: int64(resp.GetDurationMs()),
		SignedBy:   base64.StdEncoding.EncodeToString(key),
		LogIndex:   resp.GetResultIndex(),
	}
	switch header.GetStatus() {
	case workerv1.ResultStatus_RESULT_STATUS_OK:
		result.Status = StatusOK
		return result, nil
	case workerv1.ResultStatus_RESULT_STATUS_REFUSED:
		result.Status = StatusRefused
	default:
		result.Status = StatusFailed
	}
	return result, taskError(result)
}

func badResult(why error) *Error {
	return &Error{
		Code: CodeBadResult, Message: "result does not verify: " + why.Error(),
		Hint: "do not use it; run dals-host vault verify on the host", cause: why,
	}
}

// verify says whether the worker that was asked, which has this key, signed this
// answer to this request for us. The key that the answer itself names proves
// nothing; that it is another shows that something is wrong.
func verify(request *workerv1.Header, resp *hostv1.SendResponse, key ed25519.PublicKey) (*workerv1.Header, error) {
	if !key.Equal(ed25519.PublicKey(resp.GetPublicKey())) {
		return nil, errors.New("it names another key than the worker's")
	}
	result := resp.GetResult()
	header, err := envelope.Parse(result)
	if err != nil {
		return nil, err
	}
	if err := envelope.Verify(result, header, key); err != nil {
		return nil, err
	}
	asked := request.GetRecipient()
	switch {
	case header.GetStatus() == workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED:
		return nil, fmt.Errorf("it is no result")
	case header.GetInReplyTo() != request.GetId():
		return nil, fmt.Errorf("it answers envelope %s, not %s", header.GetInReplyTo(), request.GetId())
	case header.GetKind() != request.GetKind():
		return nil, fmt.Errorf("it is of kind %s, not %s", header.GetKind(), request.GetKind())
	case header.GetRecipient() != request.GetSender():
		return nil, fmt.Errorf("it is for %s", header.GetRecipient())
	case header.GetSender() != resp.GetWorkerSerial():
		return nil, fmt.Errorf("it is from %s, not from %s", header.GetSender(), resp.GetWorkerSerial())
	case asked != resp.GetWorkerSerial() && !strings.HasPrefix(asked, envelope.PoolPrefix):
		return nil, fmt.Errorf("it is from %s, but %s was asked", resp.GetWorkerSerial(), asked)
	}
	return header, nil
}

func taskError(r Result) *TaskError {
	said := &TaskError{Code: r.Status, Message: "the worker gave no reason"}
	var payload struct{ Code, Error string }
	if json.Unmarshal(r.Result, &payload) != nil {
		return said
	}
	if payload.Code != "" {
		said.Code = payload.Code
	}
	if payload.Error != "" {
		said.Message = payload.Error
	}
	return said
}
