package record

import (
	"encoding/hex"
	"strings"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// FieldsOfEnvelope are what the record keeps of an envelope that serial ran or
// shall run: the signed header with its proof, and of the payload its size and
// hash. h is the parsed header of env.
func FieldsOfEnvelope(env *workerv1.Envelope, h *workerv1.Header, serial worker.Serial) *EnvelopeFields {
	return &EnvelopeFields{
		ID: h.GetId(), InReplyTo: h.GetInReplyTo(), Sender: h.GetSender(), Recipient: h.GetRecipient(),
		WorkerSerial: string(serial), Kind: h.GetKind(), PayloadSHA256: hex.EncodeToString(h.GetPayloadSha256()),
		Size: int64(len(env.GetPayload())), Header: env.GetHeader(), Signature: env.GetProof().GetSignature(),
		Attempt: h.GetAttempt(), Status: StatusWord(h.GetStatus()),
	}
}

// StatusWord is how a result's status is written: ok, failed or refused, and ""
// for what is no result.
func StatusWord(s workerv1.ResultStatus) string {
	if s == workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return ""
	}
	return strings.ToLower(strings.TrimPrefix(s.String(), "RESULT_STATUS_"))
}
