package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/worker"
)

// whole is a worker with something in every field.
func whole(serial worker.Serial) worker.Worker {
	at := time.Date(2026, 11, 22, 16, 30, 5, 123e6, time.UTC)
	return worker.Worker{
		Serial: serial, Name: "Nora", Type: "template", TypeVersion: "1.2.3", PluginDigest: "aa", ClassCode: "A1",
		Model: serial.Model(), LedgerCode: "A1-000001", Port: 20001, UID: 70000, State: worker.StateLive, StateReason: "well",
		Launcher: "process", PublicKey: []byte{1, 2, 3}, Glyph: "+--+\n|o |", ManifestSHA256: "bb", ImageDigest: "cc",
		Config: []byte(`{"a":1}`), Grants: []string{"egress:a.org:443", "egress:b.org:80"}, RequestSHA256: "dd", Restarts: 3, CreatedAt: at, RetiredAt: at.Add(time.Hour),
		Limits: worker.Limits{MemoryBytes: 32 << 20, CPUMillis: 250, PIDs: 32}, RestartTries: 4,
	}
}

// insert adds a worker like w, with what is missing made up.
func insert(tx *Tx, w worker.Worker) error {
	var err error
	if w.Serial == "" {
		if w.Serial, err = tx.AllocateSerial("DMN-TP-1"); err != nil {
			return err
		}
	}
	if w.LedgerCode, err = tx.AllocateLedgerCode("A1"); err != nil {
		return err
	}
	if w.Name == "" {
		w.Name = string(w.Serial)
	}
	if w.State == "" {
		w.State = worker.StateForging
	}
	return tx.InsertWorker(w)
}

// conflict checks that err is a conflict that names what is taken.
func conflict(t *testing.T, err error, what string) {
	t.Helper()
	if !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), what+" is taken") {
		t.Errorf("%v, want a conflict that names %s", err, what)
	}
}

func TestWorkerRoundTrip(t *testing.T) {
	r := openTest(t)
	want := whole("DMN-TP-1-deadbeef-00000")
	update(t, r, func(tx *Tx) error { return tx.InsertWorker(want) })
	got, err := r.Worker(t.Context(), want.Serial)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	want.Name, want.TypeVersion, want.PluginDigest, want.Port, want.State, want.StateReason = "Max", "2.0.0", "ee", 2, worker.StateFailed, "ill"
	want.Launcher, want.PublicKey, want.Glyph, want.ManifestSHA256, want.ImageDigest = "containerd", []byte{9}, "x", "ff", "gg"
	want.Config, want.RequestSHA256, want.Restarts, want.RetiredAt = []byte("{}"), "hh", 4, time.Time{}
	want.Limits, want.RestartTries = worker.Limits{MemoryBytes: 64 << 20, CPUMillis: 500, PIDs: 64}, 5
	update(t, r, func(tx *Tx) error {
		if err := tx.UpdateWorker(want); err != nil {
			return err
		}
		got, err := tx.WorkerByName("Max")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in the transaction (-want +got):\n%s", diff)
		}
		return err
	})
	got, err = r.WorkerByName(t.Context(), "Max")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestWorkerConflicts(t *testing.T) {
	r := openTest(t)
	var first worker.Worker
	update(t, r, func(tx *Tx) error {
		uid, err := tx.AllocateUID(70000, 70009)
		first = whole("DMN-TP-1-deadbeef-00000")
		first.UID = uid
		return errors.Join(err, tx.InsertWorker(first))
	})
	other := func(change func(*worker.Worker)) error {
		w := first
		w.Serial, w.Name, w.LedgerCode, w.Port, w.UID = "DMN-TP-1-deadbeef-00001", "Max", "A1-000002", 20002, 0
		change(&w)
		return r.Update(t.Context(), func(tx *Tx) error { return tx.InsertWorker(w) })
	}
	conflict(t, other(func(w *worker.Worker) { w.Serial = first.Serial }), "serial")
	conflict(t, other(func(w *worker.Worker) { w.Name = first.Name }), "name")
	conflict(t, other(func(w *worker.Worker) { w.LedgerCode = first.LedgerCode }), "ledger_code")
	conflict(t, other(func(w *worker.Worker) { w.Port = first.Port }), "port")
	conflict(t, other(func(w *worker.Worker) { w.UID = first.UID }), "uid")
	if err := other(func(w *worker.Worker) { w.Port, w.UID = 0, 1000 }); err != nil { // no port, the host's uid
		t.Error(err)
	}
	shared := first
	shared.Serial, shared.Name, shared.LedgerCode, shared.Port, shared.UID = "DMN-TP-1-deadbeef-00002", "Eva", "A1-000003", 0, 1000
	update(t, r, func(tx *Tx) error { return tx.InsertWorker(shared) })
	shared.Name = first.Name
	conflict(t, r.Update(t.Context(), func(tx *Tx) error { return tx.UpdateWorker(shared) }), "name")
}

func TestRetire(t *testing.T) {
	r := openTest(t)
	ctx := t.Context()
	const serial = worker.Serial("DMN-TP-1-deadbeef-00000")
	update(t, r, func(tx *Tx) error {
		w := whole(serial)
		var err error
		if w.UID, err = tx.AllocateUID(70000, 70000); err != nil {
			return err
		}
		w.RetiredAt = time.Time{}
		return tx.InsertWorker(w)
	})
	before := time.Now().Truncate(time.Millisecond)
	update(t, r, func(tx *Tx) error { return tx.SetState(serial, worker.StateRetired, "no longer needed") })
	w, err := r.WorkerByName(ctx, "Nora")
	if err != nil || w.State != worker.StateRetired || w.StateReason != "no longer needed" || w.RetiredAt.Before(before) || w.Port != 20001 {
		t.Errorf("%+v, %v", w, err)
	}
	if taken, err := r.PortTaken(ctx, 20001); taken || err != nil {
		t.Errorf("a retired worker has the port: %t, %v", taken, err)
	}
	update(t, r, func(tx *Tx) error {
		if _, err := tx.WorkerByName("Nora"); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("a retired worker has the name: %v", err)
		}
		next := whole("DMN-TP-1-deadbeef-00001") // same name, port, uid
		next.LedgerCode = "A1-000002"
		var err error
		if next.UID, err = tx.AllocateUID(70000, 70000); err != nil {
			return err
		}
		return tx.InsertWorker(next)
	})
	if w, err := r.WorkerByName(ctx, "Nora"); err != nil || w.Serial != "DMN-TP-1-deadbeef-00001" {
		t.Errorf("%s, %v", w.Serial, err)
	}
	// Retiring the first again takes nothing from the second.
	update(t, r, func(tx *Tx) error { return tx.SetState(serial, worker.StateRetired, "") })
	err = r.Update(ctx, func(tx *Tx) error { _, err := tx.AllocateUID(70000, 70000); return err })
	if !errors.Is(err, worker.ErrExhausted) || worker.HintOf(err) == "" {
		t.Errorf("uid in use was given: %v", err)
	}
	// Of several retired ones the newest has the name; none comes back.
	update(t, r, func(tx *Tx) error { return tx.SetState("DMN-TP-1-deadbeef-00001", worker.StateRetired, "") })
	err = r.Update(ctx, func(tx *Tx) error { return tx.SetState(serial, worker.StateLive, "") })
	if !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "it is retired") {
		t.Errorf("a retired worker came back: %v", err)
	}
	if w, err := r.WorkerByName(ctx, "Nora"); err != nil || w.Serial != "DMN-TP-1-deadbeef-00001" {
		t.Errorf("%s, %v", w.Serial, err)
	}
}

func TestWorkersThatAreNotThere(t *testing.T) {
	r := openTest(t)
	const none = worker.Serial("DMN-TP-1-deadbeef-00000")
	for what, err := range map[string]error{
		"read":          second(r.Worker(t.Context(), none)),
		"read by name":  second(r.WorkerByName(t.Context(), "none")),
		"tx read":       r.Update(t.Context(), func(tx *Tx) error { return second(tx.Worker(none)) }),
		"tx by name":    r.Update(t.Context(), func(tx *Tx) error { return second(tx.WorkerByName("none")) }),
		"tx update":     r.Update(t.Context(), func(tx *Tx) error { return tx.UpdateWorker(whole(none)) }),
		"tx set state":  r.Update(t.Context(), func(tx *Tx) error { return tx.SetState(none, worker.StateLive, "") }),
		"read metadata": second(r.Meta(t.Context(), "none")),
	} {
		if !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	update(t, r, func(tx *Tx) error { return tx.DeleteWorker(none) })
}

func second[T any](_ T, err error) error { return err }

func TestWorkersFilter(t *testing.T) {
	r := openTest(t)
	update(t, r, func(tx *Tx) error {
		for i, w := range []worker.Worker{
			{Name: "c", Type: "ledger", TypeVersion: "1.0.0", State: worker.StateLive},
			{Name: "b", Type: "ledger", TypeVersion: "2.0.0", State: worker.StateFailed},
			{Name: "a", Type: "template", TypeVersion: "1.0.0", State: worker.StateLive},
			{Name: "z", Type: "ledger", TypeVersion: "1.0.0", State: worker.StateRetired},
		} {
			w.CreatedAt = time.Unix(int64(i+1), 0)
			if err := insert(tx, w); err != nil {
				return err
			}
		}
		return nil
	})
	for f, want := range map[Filter]string{
		{}:                                     "c b a",
		{IncludeRetired: true}:                 "c b a z",
		{Type: "ledger"}:                       "c b",
		{Type: "ledger", IncludeRetired: true}: "c b z",
		{State: worker.StateLive}:              "c a",
		{State: worker.StateRetired}:           "z",
		{Type: "template", State: worker.StateFailed}: "",
	} {
		list, err := r.Workers(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, w := range list {
			names = append(names, w.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%+v: %q, want %q", f, got, want)
		}
	}
	for version, want := range map[string]int{"": 2, "1.0.0": 1, "2.0.0": 1, "3.0.0": 0} {
		if n, err := r.CountWorkers(t.Context(), "ledger", version); n != want || err != nil {
			t.Errorf("%d workers of version %q, want %d, %v", n, version, want, err)
		}
	}
}

func TestDeletedWorkerLeavesItsNumbersUsed(t *testing.T) {
	r := openTest(t)
	var serials []worker.Serial
	var codes []worker.LedgerCode
	for range 3 {
		var w worker.Worker
		update(t, r, func(tx *Tx) error {
			var err error
			if w.Serial, err = tx.AllocateSerial("DMN-TP-1"); err != nil {
				return err
			}
			w.Name, w.Port, w.State = "Nora", 20001, worker.StateForging
			if w.UID, err = tx.AllocateUID(70000, 70000); err != nil {
				return err
			}
			if w.LedgerCode, err = tx.AllocateLedgerCode("A1"); err != nil {
				return err
			}
			return tx.InsertWorker(w)
		})
		update(t, r, func(tx *Tx) error { return tx.DeleteWorker(w.Serial) })
		serials, codes = append(serials, w.Serial), append(codes, w.LedgerCode)
	}
	for i := range serials {
		if want := fmt.Sprintf("%05x", i); !strings.HasSuffix(string(serials[i]), want) {
			t.Errorf("serial %d is %s", i, serials[i])
		}
		if want := worker.NewLedgerCode("A1", int64(i+1)); codes[i] != want {
			t.Errorf("ledger code %d is %s", i, codes[i])
		}
	}
}
