package envelope

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/proof"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// ErrBadStamp says that a delivery does not carry the host's word for its
// envelope.
var ErrBadStamp = errors.New("stamp does not hold")

// SignStamp marshals s and signs the bytes with the host's stamp key. A stamp
// that VerifyStamp would refuse is an error.
func SignStamp(key ed25519.PrivateKey, s *workerv1.Stamp) (stamp, signature []byte, err error) {
	if err := checkStamp(s); err != nil {
		return nil, nil, fmt.Errorf("sign stamp: %w", err)
	}
	stamp, err = proto.Marshal(s)
	if err != nil {
		return nil, nil, fmt.Errorf("marshal stamp: %w", err)
	}
	return stamp, proof.Sign(proof.Stamp, key, stamp), nil
}

// VerifyStamp reads the stamp of a delivery: signed by public's owner, well
// formed, and made for the very envelope that it travels with. Whether it is
// for this worker, in time and new is the caller's to check. The error wraps
// ErrBadStamp.
func VerifyStamp(public ed25519.PublicKey, d *workerv1.Delivery) (*workerv1.Stamp, error) {
	if !proof.Verify(proof.Stamp, public, d.GetStamp(), d.GetStampSignature()) {
		return nil, fmt.Errorf("verify stamp: %w", ErrBadStamp)
	}
	s := &workerv1.Stamp{}
	if err := proto.Unmarshal(d.GetStamp(), s); err != nil {
		return nil, fmt.Errorf("read stamp: %w: not a Stamp message", ErrBadStamp)
	}
	if err := checkStamp(s); err != nil {
		return nil, fmt.Errorf("read stamp: %w: %w", ErrBadStamp, err)
	}
	if sum := Hash(d.GetEnvelope()); !bytes.Equal(sum[:], s.HeaderSha256) {
		return nil, fmt.Errorf("match stamp: %w: it is for another envelope", ErrBadStamp)
	}
	return s, nil
}

func checkStamp(s *workerv1.Stamp) error {
	switch {
	case len(s.GetHeaderSha256()) != 32:
		return fmt.Errorf("header_sha256 has %d bytes, not 32", len(s.GetHeaderSha256()))
	case s.AdmittedAtUnixMs <= 0 || s.DeadlineUnixMs > maxTime:
		return errors.New("admitted_at or deadline is not a time")
	case s.DeadlineUnixMs <= s.AdmittedAtUnixMs:
		return errors.New("deadline is before admission")
	case !IsSerial(s.Serial):
		return errors.New("serial is not a serial")
	case s.Attempt == 0:
		return errors.New("there is no attempt")
	}
	return nil
}
