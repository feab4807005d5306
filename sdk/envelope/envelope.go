// Package envelope makes, reads and checks envelopes: the signed messages
// between clients, the host and workers. A header is signed as the bytes that
// travel, so there is no canonical form to agree on.
//
// Reading is in two steps. Parse bounds sizes and checks the form, and trusts
// nobody; Verify checks the proof of a parsed envelope under a key that the
// caller has looked up. Times are checked apart, by FreshAt, because the host
// measures them at admission and a worker measures them against the stamp.
// Errors of form and time are *FormatError with a stable code; signatures that
// do not hold are ErrBadProof and ErrBadStamp. The package keeps no state (no
// replay window, no keys), and its functions are safe for concurrent use as
// long as nobody writes to the messages meanwhile.
package envelope

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/proof"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// The bounds of an envelope.
const (
	MaxPayload = 4 << 20 // bytes
	MaxHeader  = 8 << 10 // bytes
	DefaultTTL = 30 * time.Second
	MaxTTL     = 5 * time.Minute
	MaxSkew    = 30 * time.Second // between two honest clocks
)

// Version is the version of headers that this package makes and reads.
const Version = 1

// ErrBadProof says that an envelope was not signed, as it stands, by the key.
var ErrBadProof = errors.New("proof does not hold")

// New makes an envelope from sender, signed with key. The caller's h says at
// least who shall get it and what it asks for; New works on a copy, sets the
// sender and the payload's hash, and fills what is zero: version, a UUIDv7 id,
// issued now, expires after DefaultTTL, plain encoding, application/json and a
// fresh trace glyph. A header that Parse would refuse is a *FormatError; a
// sender that names a key other than the signing one is an error too.
func New(key ed25519.PrivateKey, sender string, h *workerv1.Header, payload []byte) (*workerv1.Envelope, error) {
	if public, err := ParseClientID(sender); err == nil && !public.Equal(key.Public()) {
		return nil, fmt.Errorf("sign envelope: sender %s is not the signing key", sender)
	}
	h = proto.CloneOf(h)
	if h == nil {
		h = &workerv1.Header{}
	}
	h.Sender = sender
	sum := sha256.Sum256(payload)
	h.PayloadSha256 = sum[:]
	if err := fill(h); err != nil {
		return nil, err
	}
	if err := checkHeader(h); err != nil {
		return nil, err
	}
	header, err := proto.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("marshal header: %w", err)
	}
	if err := checkSizes(header, payload); err != nil {
		return nil, err
	}
	return &workerv1.Envelope{
		Header:  header,
		Payload: payload,
		Proof: &workerv1.Proof{Kind: &workerv1.Proof_Signature{
			Signature: proof.Sign(proof.Envelope, key, header),
		}},
	}, nil
}

// Parse reads the header of an envelope that anybody may have sent: sizes,
// version and the form of every field and of the proof, but not whether the
// proof holds, nor whether it is fresh. Fields that this version does not know
// are ignored; values of an enum that it does not know are refused. The error
// is a *FormatError.
func Parse(e *workerv1.Envelope) (*workerv1.Header, error) {
	if err := checkSizes(e.GetHeader(), e.GetPayload()); err != nil {
		return nil, err
	}
	h := &workerv1.Header{}
	if err := proto.Unmarshal(e.GetHeader(), h); err != nil {
		return nil, malformed("the header is not a Header message")
	}
	if err := checkHeader(h); err != nil {
		return nil, err
	}
	if len(e.GetProof().GetSignature()) != proof.Size {
		return nil, malformed("there is no proof of a known kind and %d bytes", proof.Size)
	}
	return h, nil
}

// Verify says whether public's owner signed e as it stands: its header bytes,
// and by the hash in the header its payload. h is what Parse made of e. The
// error wraps ErrBadProof.
func Verify(e *workerv1.Envelope, h *workerv1.Header, public ed25519.PublicKey) error {
	if !proof.Verify(proof.Envelope, public, e.GetHeader(), e.GetProof().GetSignature()) {
		return fmt.Errorf("verify header: %w", ErrBadProof)
	}
	if sum := sha256.Sum256(e.GetPayload()); !bytes.Equal(sum[:], h.GetPayloadSha256()) {
		return fmt.Errorf("verify payload: %w: not the payload that the header names", ErrBadProof)
	}
	return nil
}

// Hash names an envelope: the SHA-256 of its header's bytes, which in turn name
// the payload.
func Hash(e *workerv1.Envelope) [sha256.Size]byte { return sha256.Sum256(e.GetHeader()) }
