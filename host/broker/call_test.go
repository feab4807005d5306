package broker

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// atWork is a task that a worker works on.
func (r *rig) atWork(caller worker.Serial, depth int, until time.Time) Task {
	r.t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		r.t.Fatal(err)
	}
	d := newDelivery()
	d.Delivery = registry.Delivery{EnvelopeID: id.String(), Serial: caller, Attempt: 1, Deadline: until}
	d.call.depth = depth
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting[d.attempt()] = d
	return Task{EnvelopeID: id.String(), Attempt: 1}
}

// TestCall: a call has a task that it belongs to, no more time than that, and an
// end to its depth.
func TestCall(t *testing.T) {
	t.Parallel()
	r := up(t, &fake{})
	caller := worker.Worker{Serial: "DMN-WD-1-0000abcd-00002", Name: "far", UID: 4711, PublicKey: []byte{1}, State: worker.StateLive, LedgerCode: "A1-000002", CreatedAt: time.Now()}
	r.update(func(tx *registry.Tx) error { return tx.InsertWorker(caller) })
	call := func(of Task) error {
		_, err := r.Call(t.Context(), caller, of, r.envelope(nil, []byte("x")), MaxTimeout)
		return err
	}
	soon := time.Now().Add(MaxTimeout / 2).UTC().Truncate(time.Millisecond)
	of := r.atWork(caller.Serial, maxDepth-1, soon)
	if err := call(of); err != nil {
		t.Fatal(err)
	}
	var admitted []*record.EnvelopeFields
	for g, err := range r.registry.Groups(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range g.Entries {
			if e, err := record.Decode(line); err == nil && e.Kind == record.Admitted {
				admitted = append(admitted, e.Envelope)
			}
		}
	}
	if len(admitted) != 1 || admitted[0].CallerSerial != string(caller.Serial) || admitted[0].Parent != of.EnvelopeID || admitted[0].Deadline.After(soon) {
		t.Errorf("admitted %+v", admitted)
	}
	for code, of := range map[string]Task{
		callTooDeep:     r.atWork(caller.Serial, maxDepth, soon),
		callWithoutTask: {EnvelopeID: of.EnvelopeID, Attempt: 2},
	} {
		if err := call(of); codeOf(err) != code {
			t.Errorf("%s: %v", code, err)
		}
	}
	for name, of := range map[string]Task{
		"another worker's":              r.atWork(serial, 0, soon),
		"one of which the time is over": r.atWork(caller.Serial, 0, time.Now().Add(-time.Second)),
	} {
		if err := call(of); codeOf(err) != callWithoutTask {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.update(func(tx *registry.Tx) error { return tx.SetState(caller.Serial, worker.StateRetiring, "") })
	if err := call(r.atWork(caller.Serial, 0, soon)); codeOf(err) != senderRevoked {
		t.Errorf("from one that is being retired: %v", err)
	}
}
