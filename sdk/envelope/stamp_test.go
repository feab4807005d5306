package envelope_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/proof"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func goodStamp(e *workerv1.Envelope) *workerv1.Stamp {
	sum := envelope.Hash(e)
	return &workerv1.Stamp{
		HeaderSha256: sum[:], AdmittedAtUnixMs: 1000, LogIndex: 7, Serial: serial, Attempt: 1, DeadlineUnixMs: 2000,
	}
}

func TestStamp(t *testing.T) {
	t.Parallel()
	e, _ := request(t, nil)
	public, key := testKey(5)
	want := goodStamp(e)
	stamp, signature, err := envelope.SignStamp(key, want)
	if err != nil {
		t.Fatal(err)
	}
	good := &workerv1.Delivery{Envelope: e, Stamp: stamp, StampSignature: signature}
	got, err := envelope.VerifyStamp(public, good)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	other, _ := request(t, nil)
	stranger, _ := testKey(6)
	for name, c := range map[string]struct {
		key  []byte
		edit func(*workerv1.Delivery)
	}{
		"another host":      {stranger, func(*workerv1.Delivery) {}},
		"stamp changed":     {public, func(d *workerv1.Delivery) { d.Stamp[len(d.Stamp)-1] ^= 1 }},
		"signature changed": {public, func(d *workerv1.Delivery) { d.StampSignature[0] ^= 1 }},
		"no stamp":          {public, func(d *workerv1.Delivery) { d.Stamp, d.StampSignature = nil, nil }},
		"another envelope":  {public, func(d *workerv1.Delivery) { d.Envelope = other }},
		"no envelope":       {public, func(d *workerv1.Delivery) { d.Envelope = nil }},
		"signed as a header": {public, func(d *workerv1.Delivery) {
			d.StampSignature = proof.Sign(proof.Envelope, key, d.Stamp)
		}},
		"no Stamp message": {public, func(d *workerv1.Delivery) {
			d.Stamp = []byte("noise")
			d.StampSignature = proof.Sign(proof.Stamp, key, d.Stamp)
		}},
	} {
		bad := proto.CloneOf(good)
		c.edit(bad)
		if s, err := envelope.VerifyStamp(c.key, bad); s != nil || !errors.Is(err, envelope.ErrBadStamp) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, err := envelope.VerifyStamp(public, nil); !errors.Is(err, envelope.ErrBadStamp) {
		t.Errorf("no delivery: %v", err)
	}
}

func TestStampForms(t *testing.T) {
	t.Parallel()
	e, _ := request(t, nil)
	public, key := testKey(5)
	for name, edit := range map[string]func(*workerv1.Stamp){
		"no hash":               func(s *workerv1.Stamp) { s.HeaderSha256 = nil },
		"no admission":          func(s *workerv1.Stamp) { s.AdmittedAtUnixMs = 0 },
		"no serial":             func(s *workerv1.Stamp) { s.Serial = "" },
		"a pool's serial":       func(s *workerv1.Stamp) { s.Serial = "pool:goat" },
		"no attempt":            func(s *workerv1.Stamp) { s.Attempt = 0 },
		"no deadline":           func(s *workerv1.Stamp) { s.DeadlineUnixMs = 0 },
		"deadline at admission": func(s *workerv1.Stamp) { s.DeadlineUnixMs = s.AdmittedAtUnixMs },
		"deadline never":        func(s *workerv1.Stamp) { s.DeadlineUnixMs = 1<<63 - 1 },
	} {
		s := goodStamp(e)
		edit(s)
		if _, _, err := envelope.SignStamp(key, s); err == nil {
			t.Errorf("%s: signed", name)
		}
		raw, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		d := &workerv1.Delivery{Envelope: e, Stamp: raw, StampSignature: proof.Sign(proof.Stamp, key, raw)}
		if _, err := envelope.VerifyStamp(public, d); !errors.Is(err, envelope.ErrBadStamp) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
