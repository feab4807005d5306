package client

// Codes of an Error that say what kind of no it is. They are stable, as are all
// here: programs may depend on them.
const (
	CodeInvalid     = "invalid"
	CodeNotFound    = "not_found"
	CodeConflict    = "conflict"
	CodeExhausted   = "exhausted"
	CodeUnavailable = "unavailable"
	CodeDeadline    = "deadline"
	CodeCorrupt     = "corrupt"
	CodeRefused     = "refused"
	CodeCanceled    = "canceled"
	CodeInternal    = "internal"
	// CodeBadResult says that a result could not be verified: do not use it. No
	// host gives it, this package does.
	CodeBadResult = "bad_result"
)

// Codes of an Error when an envelope is refused by the host; those that a worker
// checks again for itself may come in a TaskError too.
const (
	CodePayloadTooLarge   = "payload_too_large"
	CodeRateLimited       = "rate_limited"
	CodeMalformed         = "malformed"
	CodeRecipientUnknown  = "recipient_unknown"
	CodeRecipientRetired  = "recipient_retired"
	CodeSenderUnknown     = "sender_unknown"
	CodeSenderRevoked     = "sender_revoked"
	CodeExpired           = "expired"
	CodeNotYetValid       = "not_yet_valid"
	CodeTTLTooLong        = "ttl_too_long"
	CodeReplayed          = "replayed"
	CodeBadProof          = "bad_proof"
	CodeCallNotGranted    = "call_not_granted"
	CodeIngressNotGranted = "ingress_not_granted"
	CodeCallWithoutTask   = "call_without_task"
	CodeCallTooDeep       = "call_too_deep"
	CodeKindUnknown       = "kind_unknown"
	CodePayloadNotJSON    = "payload_not_json"
	CodeSchemaMismatch    = "schema_mismatch"
	CodeOverloaded        = "overloaded"
	CodeWorkerUnavailable = "worker_unavailable"
)

// Codes of a TaskError when a worker refuses what the host let through.
const (
	CodeBadStamp       = "bad_stamp"
	CodeMisaddressed   = "misaddressed"
	CodeBusy           = "busy"
	CodeVaultIntegrity = "vault_integrity"
)

// Codes of a TaskError when a task failed and its author gave it no code.
const (
	CodeFailed         = "failed"
	CodePanicked       = "panicked"
	CodeTaskDeadline   = "deadline_exceeded"
	CodeTaskCancelled  = "cancelled"
	CodeResultTooLarge = "result_too_large"
	// CodeResultDropped says that the task has ended, and its result could not be
	// kept until the host took it.
	CodeResultDropped = "result_dropped"
)
