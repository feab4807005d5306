package envelope_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// FuzzParse feeds whole envelopes as they come off a wire. Nothing may panic;
// what parses must keep to its bounds, must hold when its own sender signs it,
// and must not hold for anybody else.
func FuzzParse(f *testing.F) {
	seed, _ := request(f, nil)
	for _, e := range []*workerv1.Envelope{
		{}, seed, forged(f, func(h *workerv1.Header) { h.ExpiresUnixMs = 1<<63 - 1 }), seal([]byte("noise"), nil),
	} {
		raw, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	me, _ := testKey(1)
	stranger, _ := testKey(2)
	f.Fuzz(func(t *testing.T, raw []byte) {
		e := &workerv1.Envelope{}
		if proto.Unmarshal(raw, e) != nil {
			return
		}
		h, err := envelope.Parse(e)
		if err != nil {
			if h != nil || codeOf(err) == err.Error() {
				t.Fatalf("not a FormatError: %v", err)
			}
			return
		}
		if len(e.Header) > envelope.MaxHeader || len(e.Payload) > envelope.MaxPayload || h.ExpiresUnixMs <= h.IssuedUnixMs {
			t.Fatal("parsed out of bounds")
		}
		_ = envelope.FreshAt(h, time.UnixMilli(h.IssuedUnixMs))
		if envelope.Verify(e, h, stranger) == nil {
			t.Fatal("a stranger's proof holds")
		}
		again := seal(e.Header, e.Payload)
		err = envelope.Verify(again, h, me)
		sum := sha256.Sum256(e.Payload)
		if fits := bytes.Equal(sum[:], h.PayloadSha256); fits != (err == nil) || (err != nil && !errors.Is(err, envelope.ErrBadProof)) {
			t.Fatalf("payload fits: %v, verify: %v", fits, err)
		}
	})
}

func FuzzVerifyStamp(f *testing.F) {
	e, _ := request(f, nil)
	public, key := testKey(5)
	stamp, signature, err := envelope.SignStamp(key, goodStamp(e))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(stamp, signature)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, rawStamp, rawSignature []byte) {
		d := &workerv1.Delivery{Envelope: e, Stamp: rawStamp, StampSignature: rawSignature}
		same := bytes.Equal(rawStamp, stamp) && bytes.Equal(rawSignature, signature)
		if _, err := envelope.VerifyStamp(public, d); (err == nil) != same {
			t.Fatalf("the signed stamp: %v, verify: %v", same, err)
		}
	})
}
