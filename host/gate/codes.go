package gate

// The codes of refusals, in the order of the checks. They are part of the
// control API: programs depend on them, so they never change their meaning.
const (
	PayloadTooLarge  = "payload_too_large"
	RateLimited      = "rate_limited"
	Malformed        = "malformed"
	RecipientUnknown = "recipient_unknown"
	RecipientRetired = "recipient_retired"
	Unavailable      = "worker_unavailable"
	SenderUnknown    = "sender_unknown"
	SenderRevoked    = "sender_revoked"
	Expired          = "expired"
	NotYetValid      = "not_yet_valid"
	TTLTooLong       = "ttl_too_long"
	Replayed         = "replayed"
	BadProof         = "bad_proof"
	CallNotGranted   = "call_not_granted"

	IngressNotGranted = "ingress_not_granted"

	KindUnknown    = "kind_unknown"
	PayloadNotJSON = "payload_not_json"
	SchemaMismatch = "schema_mismatch"
)
