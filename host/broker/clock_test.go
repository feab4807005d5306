package broker

import (
	"errors"
	"testing"
	"time"
)

// What an earlier host left outstanding has a deadline by that host's clock.
func TestPatienceByAnotherClock(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		left, want time.Duration
	}{
		{time.Minute, time.Minute},
		{0, readoptionGrace},
		{time.Minute - time.Hour, readoptionGrace}, // the clock was set forth since
		{time.Minute + time.Hour, MaxTimeout},      // and back
		{-1 << 62, readoptionGrace},
		{1 << 62, MaxTimeout},
	} {
		if got := patience(now.Add(c.left), now); got != c.want {
			t.Errorf("deadline in %s: %s, want %s", c.left, got, c.want)
		}
	}
}

// Heartbeats and deadlines go by the time that passes, whatever the clock is set
// to meanwhile: their instants have what Go measures that by.
func TestInstantsAreMonotonic(t *testing.T) {
	t.Parallel()
	r := up(t, &fake{})
	monotonic := func(at time.Time) bool { return at != at.Round(0) }
	if err := r.AwaitHeartbeat(t.Context(), serial, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if last := r.Health(serial).Last; !monotonic(last) {
		t.Errorf("the last heartbeat, %s, is told by the clock alone", last)
	}
	d := newDelivery()
	a, err := r.gate.Admit(t.Context(), "test", r.envelope(nil, []byte("{}")))
	if err == nil {
		err = r.admit(d, a, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !monotonic(d.AdmittedAt) || !monotonic(d.Deadline) {
		t.Errorf("admitted at %s until %s: by the clock alone", d.AdmittedAt, d.Deadline)
	}
	if err := r.close(d, ending{statusLost, errors.New("it is lost")}); err != nil || !monotonic(d.outcome.at) {
		t.Errorf("ended at %s: by the clock alone, %v", d.outcome.at, err)
	}
}

// A worker whose certificate was made by a clock an hour off is connected to.
func TestCertificateByAnotherClock(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, &fake{})
			r.serveAt(time.Now().Add(wrong))
			r.attach()
			eventually(t, "connected", func() bool { return r.Health(serial).Connected })
		})
	}
}
