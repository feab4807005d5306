package registry

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dals-host/dals-host/host/worker"
)

var at = time.Date(2026, 11, 22, 16, 30, 5, 123e6, time.UTC)

// same compares what a read gave with what it should.
func same[T any](t *testing.T, want T) func(got T, err error) {
	return func(got T, err error) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
}

func TestClients(t *testing.T) {
	r := openTest(t)
	ctx := t.Context()
	add := func(c Client) error { return r.Update(ctx, func(tx *Tx) error { return tx.AddClient(c) }) }
	first := Client{ID: "key:1", Name: "operator", PublicKey: []byte{1}, CreatedAt: at}
	second := Client{ID: "key:2", Name: "robot", PublicKey: []byte{2}, CreatedAt: at.Add(time.Second)}
	if err := errors.Join(add(second), add(first)); err != nil {
		t.Fatal(err)
	}
	conflict(t, add(Client{ID: "key:3", Name: "robot"}), "name")
	conflict(t, add(Client{ID: "key:2", Name: "other"}), "id")

	revoke := func(name string) error {
		return r.Update(ctx, func(tx *Tx) error { _, err := tx.RevokeClient(name, at.Add(time.Hour)); return err })
	}
	if err := revoke("robot"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"robot", "nobody"} {
		if err := revoke(name); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("revoke %s: %v", name, err)
		}
	}
	second.RevokedAt = at.Add(time.Hour)
	same(t, second)(r.Client(ctx, "key:2"))
	conflict(t, add(second), "id") // a revoked key stays out
	third := Client{ID: "key:3", Name: "robot", PublicKey: []byte{3}, CreatedAt: at.Add(time.Minute)}
	if err := add(third); err != nil { // its name does not
		t.Error(err)
	}
	same(t, []Client{first, second, third})(r.Clients(ctx))
	if _, err := r.Client(ctx, "key:9"); !errors.Is(err, worker.ErrNotFound) {
		t.Error(err)
	}
}

func TestPlugins(t *testing.T) {
	r := openTest(t)
	ctx := t.Context()
	old := Descriptor{Digest: "bb", Type: "ledger", Version: "1.0.0", Descriptor: []byte("old"), ProbedAt: at}
	d := Descriptor{Digest: "aa", Type: "template", Version: "1.0.0", Descriptor: []byte("d"), ProbedAt: at}
	typ := Type{Name: "ledger", Version: "1.0.0", Digest: "bb", RegisteredAt: at}
	update(t, r, func(tx *Tx) error { return errors.Join(tx.PutDescriptor(d), tx.PutDescriptor(old), tx.PutType(typ)) })
	now := old
	now.Descriptor, now.ProbedAt = []byte("new"), at.Add(time.Hour)
	update(t, r, func(tx *Tx) error { return tx.PutDescriptor(now) })
	same(t, []Descriptor{now, d})(r.Descriptors(ctx))

	typ.Digest, typ.RegisteredAt = "aa", at.Add(time.Hour)
	next := Type{Name: "ledger", Version: "1.1.0", Digest: "bb", RegisteredAt: at}
	update(t, r, func(tx *Tx) error { return errors.Join(tx.PutType(typ), tx.PutType(next)) })
	same(t, []Type{typ, next})(r.Types(ctx))
	if err := r.Update(ctx, func(tx *Tx) error { return tx.PutType(Type{Name: "x", Digest: "none"}) }); !errors.Is(err, worker.ErrInvalid) {
		t.Errorf("type without a descriptor: %v", err)
	}
	update(t, r, func(tx *Tx) error {
		return errors.Join(tx.RemoveType("ledger", "1.0.0"), tx.RemoveType("ledger", "1.0.0"))
	})
	same(t, []Type{next})(r.Types(ctx))

	q := Quarantine{Digest: "cc", Reason: "no ELF", Fix: "build it", At: at}
	update(t, r, func(tx *Tx) error {
		return errors.Join(tx.PutQuarantine(Quarantine{Digest: "cc"}), tx.PutQuarantine(q), tx.PutQuarantine(Quarantine{Digest: "dd"}))
	})
	update(t, r, func(tx *Tx) error { return errors.Join(tx.RemoveQuarantine("dd"), tx.RemoveQuarantine("dd")) })
	same(t, []Quarantine{q})(r.Quarantines(ctx))
}

func TestDeliveries(t *testing.T) {
	r := openTest(t)
	ctx := t.Context()
	put := func(d Delivery) error { return r.Update(ctx, func(tx *Tx) error { return tx.PutDelivery(d) }) }
	take := func(id string, serial worker.Serial, attempt uint32) (d Delivery, err error) {
		err = r.Update(ctx, func(tx *Tx) error { d, err = tx.TakeDelivery(id, serial, attempt); return err })
		return d, err
	}
	const s, other = worker.Serial("DMN-TP-1-deadbeef-00000"), worker.Serial("DMN-TP-1-deadbeef-00001")
	d := Delivery{
		EnvelopeID: "e", Sender: "key:1", Serial: s, Attempt: 1, Header: []byte{1},
		AdmittedAt: at, Deadline: at.Add(time.Minute), LogIndex: 9,
	}
	later := Delivery{EnvelopeID: "f", Sender: "key:1", Serial: other, Attempt: 1, AdmittedAt: at, Deadline: at, LogIndex: 12}
	if err := errors.Join(put(later), put(d)); err != nil {
		t.Fatal(err)
	}
	same(t, []Delivery{d, later})(r.Deliveries(ctx, ""))
	same(t, []Delivery{d})(r.Deliveries(ctx, s))

	twin := d
	twin.Sender = "key:2"
	if err := put(twin); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("one id from two senders: %v", err)
	}
	if err := put(d); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("one attempt twice: %v", err)
	}
	retry := d
	retry.Attempt, retry.Serial, retry.LogIndex = 2, other, 10
	if err := put(retry); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []Delivery{d, {EnvelopeID: "e", Serial: s, Attempt: 2}, {EnvelopeID: "e", Serial: other, Attempt: 1}, {EnvelopeID: "x", Serial: other, Attempt: 2}} {
		if _, err := take(wrong.EnvelopeID, wrong.Serial, wrong.Attempt); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("envelope %s at %s, attempt %d: %v", wrong.EnvelopeID, wrong.Serial, wrong.Attempt, err)
		}
	}
	same(t, retry)(take("e", other, 2))
	if _, err := take("e", other, 2); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("a second result: %v", err)
	}
	same(t, []Delivery{later})(r.Deliveries(ctx, ""))
}
