// Package proof makes and checks the signatures of the project: Ed25519 by
// nacl/sign over a domain, a zero byte and the message, carried detached as 64
// bytes. The domain keeps a signature made for one purpose from ever holding
// for another. Verify follows the rules of crypto/ed25519, so two ends never
// disagree. The package keeps no keys and no state; everything in it is safe
// for concurrent use.
package proof

import (
	"crypto/ed25519"

	"golang.org/x/crypto/nacl/sign"
)

// Size is the length of every signature in bytes.
const Size = sign.Overhead

// Domain says what a signature is for. A domain never contains a zero byte.
type Domain string

// The domains, one for each kind of signed thing.
const (
	Envelope Domain = "dals.envelope.v1"
	Stamp    Domain = "dals.stamp.v1"
	Manifest Domain = "dals.manifest.v1"
	Backup   Domain = "dals.backup.v1"
)

// Sign is the signature of message in domain d, Size bytes. It panics when key
// is not a whole private key, as ed25519.Sign does: that is a programming error.
func Sign(d Domain, key ed25519.PrivateKey, message []byte) []byte {
	signed := sign.Sign(nil, appendSigned(nil, d, message), (*[ed25519.PrivateKeySize]byte)(key))
	return signed[:Size:Size]
}

// Verify says whether signature is the signature of message in domain d by
// public's private key. Keys and signatures of a wrong length do not hold.
func Verify(d Domain, public ed25519.PublicKey, message, signature []byte) bool {
	if len(public) != ed25519.PublicKeySize || len(signature) != Size {
		return false
	}
	signed := make([]byte, 0, Size+len(d)+1+len(message))
	signed = appendSigned(append(signed, signature...), d, message)
	_, ok := sign.Open(nil, signed, (*[ed25519.PublicKeySize]byte)(public))
	return ok
}

// appendSigned appends the bytes that a signature covers.
func appendSigned(to []byte, d Domain, message []byte) []byte {
	to = append(to, d...)
	to = append(to, 0)
	return append(to, message...)
}
