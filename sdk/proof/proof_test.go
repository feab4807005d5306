package proof_test

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"golang.org/x/crypto/nacl/sign"

	"github.com/dals-host/dals-host/sdk/proof"
)

func testKey(b byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), key
}

func TestSignedBytes(t *testing.T) {
	t.Parallel()
	public, key := testKey(1)
	message := []byte("a header")
	signature := proof.Sign(proof.Envelope, key, message)
	if len(signature) != proof.Size || !proof.Verify(proof.Envelope, public, message, signature) {
		t.Fatalf("signature of %d bytes does not hold", len(signature))
	}
	// Others must be able to check it with nothing but the format's words.
	signed := append(bytes.Clone(signature), "dals.envelope.v1\x00a header"...)
	if _, ok := sign.Open(nil, signed, (*[32]byte)(public)); !ok {
		t.Error("nacl/sign does not open it")
	}
	if !ed25519.Verify(public, signed[proof.Size:], signature) {
		t.Error("crypto/ed25519 does not verify it")
	}
	if cap(signature) != len(signature) {
		t.Error("appending to a signature would write into the signed message")
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	public, key := testKey(1)
	stranger, _ := testKey(2)
	message := []byte("a header")
	good := proof.Sign(proof.Envelope, key, message)
	for name, ok := range map[string]bool{
		"other domain":       proof.Verify(proof.Stamp, public, message, good),
		"other key":          proof.Verify(proof.Envelope, stranger, message, good),
		"other message":      proof.Verify(proof.Envelope, public, []byte("a heades"), good),
		"longer message":     proof.Verify(proof.Envelope, public, append(bytes.Clone(message), 0), good),
		"no message":         proof.Verify(proof.Envelope, public, nil, good),
		"no signature":       proof.Verify(proof.Envelope, public, message, nil),
		"short signature":    proof.Verify(proof.Envelope, public, message, good[:63]),
		"long signature":     proof.Verify(proof.Envelope, public, message, append(bytes.Clone(good), 0)),
		"no key":             proof.Verify(proof.Envelope, nil, message, good),
		"short key":          proof.Verify(proof.Envelope, public[:31], message, good),
		"long key":           proof.Verify(proof.Envelope, append(bytes.Clone(public), 0), message, good),
		"private key":        proof.Verify(proof.Envelope, ed25519.PublicKey(key), message, good),
		"not a curve point":  proof.Verify(proof.Envelope, bytes.Repeat([]byte{0xff}, 32), message, good),
		"text moved between": proof.Verify("dals.envelope.v1\x00a", public, []byte("header"), good),
	} {
		if ok {
			t.Errorf("%s: the signature holds", name)
		}
	}
}

func TestEveryBitCounts(t *testing.T) {
	t.Parallel()
	public, key := testKey(3)
	message := []byte("x")
	good := proof.Sign(proof.Manifest, key, message)
	for bit := range len(good) * 8 {
		flipped := bytes.Clone(good)
		flipped[bit/8] ^= 1 << (bit % 8)
		if proof.Verify(proof.Manifest, public, message, flipped) {
			t.Fatalf("bit %d of the signature may be flipped", bit)
		}
	}
}

// A signature plus the group order is the same equation: the rule that forbids
// it is what two lenient verifiers would disagree about.
func TestMalleableScalarIsRefused(t *testing.T) {
	t.Parallel()
	order := []byte{
		0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
	}
	public, key := testKey(4)
	twin := bytes.Clone(proof.Sign(proof.Envelope, key, []byte("m")))
	carry := 0
	for i, b := range order {
		sum := int(twin[32+i]) + int(b) + carry
		twin[32+i], carry = byte(sum), sum>>8
	}
	if proof.Verify(proof.Envelope, public, []byte("m"), twin) {
		t.Fatal("one message has two signatures")
	}
}

func TestDomainsDiffer(t *testing.T) {
	t.Parallel()
	seen := map[proof.Domain]bool{}
	for _, d := range []proof.Domain{proof.Envelope, proof.Stamp, proof.Manifest} {
		if seen[d] || bytes.IndexByte([]byte(d), 0) >= 0 {
			t.Errorf("domain %q is used twice or has a zero byte", d)
		}
		seen[d] = true
	}
}
