package forge

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// keepWarm has the rig's forge keep n workers warm, and makes them.
func (r *rig) keepWarm(n int) {
	r.t.Helper()
	r.forge.Warm = map[string]int{"template": n}
	if err := r.forge.refill(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// TestClaim: forges claim what is kept warm, and are cold when nothing is left.
func TestClaim(t *testing.T) {
	r := newRig(t)
	r.keepWarm(2)
	kept := r.forge.warmth.slots
	if len(kept) != 2 || len(r.launcher.warm) != 2 {
		t.Fatalf("%d slots, %v", len(kept), r.launcher.warm)
	}
	serials := []worker.Serial{kept[0].worker.Serial, kept[1].worker.Serial}
	plan, err := r.forge.Plan(t.Context(), nora)
	if err != nil || plan.Worker.Serial != serials[0] {
		t.Errorf("planned %s, %v; %s is ready", plan.Worker.Serial, err, serials[0])
	}
	uids := map[int]bool{}
	for i, name := range []string{"nora", "otto", "pia"} {
		request := nora
		request.Name = name
		made, err := r.forge.Forge(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		r.whole(made.Worker)
		if i < 2 && made.Worker.Serial != serials[i] {
			t.Errorf("%s is %s, %s was ready", name, made.Worker.Serial, serials[i])
		}
		uids[made.Worker.UID] = true
	}
	if held, err := r.registry.HeldUIDs(t.Context()); len(uids) != 3 || len(held) != 0 || err != nil {
		t.Errorf("uids %v; held: %v, %v", uids, held, err)
	}
	if n := len(r.launcher.warm) + len(r.forge.warmth.slots); n != 0 {
		t.Errorf("%d are left", n)
	}
	for digest, n := range r.forge.leases.held {
		t.Errorf("%d leases of %s are left", n, digest)
	}
}

// TestNoClaim: a worker that needs more than others, or no container, does not get
// what is kept warm.
func TestNoClaim(t *testing.T) {
	r := newRig(t)
	r.asks = []string{"egress:example.com:443"}
	r.keepWarm(1)
	granted, idle := nora, nora
	granted.Grants = r.asks
	idle.Name, idle.NoStart = "otto", true
	for _, request := range []Request{granted, idle} {
		if _, err := r.forge.Forge(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		if len(r.launcher.warm) != 1 {
			t.Fatalf("%s has claimed it", request.Name)
		}
	}
}

// TestClaimStepMatrix breaks every step of a forge that has claimed: nothing is left,
// and its uid is free.
func TestClaimStepMatrix(t *testing.T) {
	for i, s := range New(Config{}).steps() {
		for how, broken := range breaks {
			if s.name == "record" && how != "fails before" {
				continue // the commit point
			}
			t.Run(s.name+" "+how, func(t *testing.T) {
				r := newRig(t)
				r.keepWarm(1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				j, err := r.forge.newJob(ctx, nora)
				if err != nil {
					t.Fatal(err)
				}
				steps := r.forge.steps()
				steps[i].do = broken(steps[i].do, cancel)
				if err := r.forge.run(ctx, j, steps); err == nil || !strings.Contains(err.Error(), s.name+": ") {
					t.Fatalf("error %v does not name the step", err)
				}
				r.forge.coolAll(t.Context())
				r.nothingLeft(s.name, j.worker.Port)
				made, err := r.forge.Forge(t.Context(), nora)
				if err != nil {
					t.Fatal(err)
				}
				r.whole(made.Worker)
				if made.Worker.UID != r.forge.UIDs.Low {
					t.Errorf("uid %d: the first one is still taken", made.Worker.UID)
				}
			})
		}
	}
}

// TestClaimLeftOpen: a host that dies with a claim at any step leaves what the next
// one undoes, and so does one that only kept it warm.
func TestClaimLeftOpen(t *testing.T) {
	steps := New(Config{}).steps()
	for n := range steps { // n steps are done
		r := newRig(t)
		r.keepWarm(1)
		j, err := r.forge.newJob(t.Context(), nora)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.forge.steps()[:n] {
			if err := s.do(t.Context(), j); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
		}
		r.launcher.running = map[worker.Serial]bool{}
		r.launcher.warm = nil // a launcher that is opened removes them
		r.die()
		if err := r.forge.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.stage.Sweep(); err != nil {
			t.Fatal(err)
		}
		r.nothingLeft(steps[n].name, 0)
	}
}

// TestWarmFollowsType: what is kept warm is of the default version, of a type that
// there is.
func TestWarmFollowsType(t *testing.T) {
	r := newRig(t)
	r.keepWarm(2)
	r.version, r.digest = "1.3.0", strings.Repeat("ab", 32)
	r.keepWarm(2)
	for _, s := range r.forge.warmth.slots {
		if s.worker.TypeVersion != "1.3.0" {
			t.Errorf("%s is kept warm", s.worker.TypeVersion)
		}
	}
	if len(r.launcher.warm) != 2 {
		t.Errorf("%d are kept warm", len(r.launcher.warm))
	}
	r.forge.Warm = map[string]int{"template": 2, "ledger": 2}
	if err := r.forge.refill(t.Context()); err != nil {
		t.Errorf("a type that there is not: %v", err)
	}
}

// TestWarmEnds: nothing stays warm when the host ends or goes down, nor where it
// could not be made.
func TestWarmEnds(t *testing.T) {
	for _, how := range []string{"ends", "freezes", "cannot"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			r.forge.Warm = map[string]int{"template": 2}
			if how == "cannot" {
				r.launcher.cold = errInjected
				if err := r.forge.refill(t.Context()); !errors.Is(err, errInjected) {
					t.Errorf("refill: %v", err)
				}
				r.nothingLeft(how, 0)
				return
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- r.forge.KeepWarm(ctx) }()
			all := func(*slot) bool { return true }
			for deadline := time.Now().Add(10 * time.Second); r.forge.warmth.count(all) < 2; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing is kept warm")
				}
			}
			if how == "freezes" {
				hurried, cancel := context.WithCancel(t.Context())
				cancel()
				if err := r.forge.Freeze(hurried); err != nil {
					t.Fatal(err)
				}
				r.nothingLeft(how, 0) // once it is frozen
			} else {
				cancel()
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			r.nothingLeft(how, 0)
		})
	}
}

// TestWarmLeft: what could not be removed at once is claimed by nobody, and removed
// later.
func TestWarmLeft(t *testing.T) {
	r := newRig(t)
	r.launcher.cold, r.launcher.stays = errInjected, worker.ErrUnavailable
	r.forge.Warm = map[string]int{"template": 1}
	for range 2 {
		if err := r.forge.refill(t.Context()); !errors.Is(err, worker.ErrUnavailable) {
			t.Fatalf("refill: %v", err)
		}
	}
	if n := len(r.forge.warmth.left); n != 1 {
		t.Errorf("%d are left", n)
	}
	r.launcher.cold, r.launcher.stays = nil, nil
	if err := r.forge.refill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.forge.coolAll(t.Context())
	r.nothingLeft("once it can be removed", 0)
}
