package forge

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// TestAnyOrder forges, fails to forge, retires and dies in random orders, on a
// real registry file. After every step the workers are those of the model,
// nothing else is left, and in each class the ledger codes of all forges and
// voids are 1, 2, 3 and so on, each given once; no serial comes twice.
func TestAnyOrder(t *testing.T) {
	few(t, 10)
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		defer r.close()
		m := &model{rig: r, rt: rt, live: map[string]worker.Worker{}}
		rt.Repeat(map[string]func(*rapid.T){
			"forge":         m.forgeOne,
			"fail to forge": m.failToForge,
			"die forging":   m.dieForging,
			"retire":        m.retire,
			"die retiring":  m.dieRetiring,
			"die":           func(*rapid.T) { m.dieAndRecover() },
			"":              func(*rapid.T) { m.check() },
		})
	})
}

// few makes rapid try n orders, unless the command line says how many.
func few(t *testing.T, n int) {
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() != checks.DefValue {
		return
	}
	if err := flag.Set(checks.Name, fmt.Sprint(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(checks.Name, checks.DefValue) })
}

// model is what there must be.
type model struct {
	*rig
	rt     *rapid.T
	live   map[string]worker.Worker
	ended  int // workers that retired
	forges int // that were ever finished
	voids  int
}

func (m *model) request(rt *rapid.T) Request {
	return Request{
		Name:      rapid.SampledFrom([]string{"ada", "ben", "cleo", "dora"}).Draw(rt, "name"),
		ClassCode: rapid.SampledFrom([]string{"A1", "B2", "300.100.000"}).Draw(rt, "class"),
		Type:      "template",
	}
}

func (m *model) forgeOne(rt *rapid.T) {
	request := m.request(rt)
	made, err := m.forge.Forge(context.Background(), request)
	has, taken := m.live[request.Name]
	switch {
	case taken && string(has.ClassCode) != request.ClassCode:
		if !errors.Is(err, worker.ErrConflict) {
			rt.Fatalf("another %s: %v", request.Name, err)
		}
	case err != nil:
		rt.Fatal(err)
	case made.Existed != taken || taken && made.Worker.Serial != has.Serial:
		rt.Fatalf("%s: existed %t, %s; there was %s", request.Name, made.Existed, made.Worker.Serial, has.Serial)
	case !taken:
		m.live[request.Name] = made.Worker
		m.forges++
	}
}

// free draws a request for a name that nobody has.
func (m *model) free(rt *rapid.T) Request {
	request := m.request(rt)
	if _, taken := m.live[request.Name]; taken {
		rt.Skip("taken")
	}
	return request
}

func (m *model) failToForge(rt *rapid.T) {
	request := m.free(rt)
	m.noBeat = errInjected
	defer func() { m.noBeat = nil }()
	if _, err := m.forge.Forge(context.Background(), request); !errors.Is(err, errInjected) {
		rt.Fatal(err)
	}
	m.voids++
}

func (m *model) dieForging(rt *rapid.T) {
	request := m.free(rt)
	steps := m.forge.steps()
	n := rapid.IntRange(1, len(steps)).Draw(rt, "steps done")
	j, err := m.forge.newJob(context.Background(), request)
	if err != nil {
		rt.Fatal(err)
	}
	for _, s := range steps[:n] {
		if err := s.do(context.Background(), j); err != nil {
			rt.Fatalf("%s: %v", s.name, err)
		}
	}
	if n == len(steps) { // past the commit point
		m.live[request.Name] = j.worker
		m.forges++
	} else {
		m.voids++
	}
	m.dieAndRecover()
}

// one draws a worker that lives.
func (m *model) one(rt *rapid.T) worker.Worker {
	var names []string
	for name := range m.live {
		names = append(names, name)
	}
	if len(names) == 0 {
		rt.Skip("nobody lives")
	}
	slices.Sort(names)
	return m.live[rapid.SampledFrom(names).Draw(rt, "who")]
}

func (m *model) retire(rt *rapid.T) {
	w := m.one(rt)
	if _, err := m.forge.Retire(context.Background(), w.Serial, 0); err != nil {
		rt.Fatal(err)
	}
	delete(m.live, w.Name)
	m.ended++
}

func (m *model) dieRetiring(rt *rapid.T) {
	w := m.one(rt)
	err := m.registry.Update(context.Background(), func(tx *registry.Tx) error {
		return tx.SetState(w.Serial, worker.StateRetiring, "")
	})
	if err != nil {
		rt.Fatal(err)
	}
	delete(m.live, w.Name)
	m.ended++
	m.dieAndRecover()
}

func (m *model) dieAndRecover() {
	m.die()
	if err := m.forge.Recover(context.Background()); err != nil {
		m.rt.Fatal(err)
	}
}

func (m *model) check() {
	rt := m.rt
	workers, err := m.registry.Workers(context.Background(), registry.Filter{IncludeRetired: true})
	if err != nil {
		rt.Fatal(err)
	}
	ended := 0
	for _, w := range workers {
		if w.State == worker.StateRetired {
			ended++
		} else if has := m.live[w.Name]; w.State != worker.StateLive || has.Serial != w.Serial || has.LedgerCode != w.LedgerCode || !m.launcher.running[w.Serial] {
			rt.Fatalf("worker %+v, want %+v", w, has)
		}
	}
	if ended != m.ended || len(workers) != len(m.live)+m.ended || len(m.launcher.running) != len(m.live) {
		rt.Fatalf("%d workers, %d retired, %d run; want %d alive and %d retired", len(workers), ended, len(m.launcher.running), len(m.live), m.ended)
	}
	for dir, want := range map[string]int{".stage": 0, "instances": len(m.live)} {
		if left, err := os.ReadDir(filepath.Join(m.dir, "workers", dir)); err != nil || len(left) != want {
			rt.Fatalf("in %s: %v, %v", dir, left, err)
		}
	}
	m.checkNumbers()
}

// checkNumbers reads the record: each number once, and no ledger code missing.
func (m *model) checkNumbers() {
	forges, voids := 0, 0
	serials, given := map[worker.Serial]bool{}, map[worker.ClassCode][]int64{}
	for _, e := range m.entries() {
		switch e.Kind {
		case record.Forge:
			forges++
		case record.Void:
			voids++
		default:
			continue
		}
		class, sequence, err := worker.ParseLedgerCode(string(e.Worker.Ledger))
		if err != nil || serials[e.Worker.Serial] {
			m.rt.Fatalf("%s of %s: given before: %t, %v", e.Worker.Serial, e.Worker.Ledger, serials[e.Worker.Serial], err)
		}
		serials[e.Worker.Serial] = true
		given[class] = append(given[class], sequence)
	}
	if forges != m.forges || voids != m.voids {
		m.rt.Fatalf("%d forges and %d voids recorded, want %d and %d", forges, voids, m.forges, m.voids)
	}
	for class, sequences := range given {
		slices.Sort(sequences)
		for i, n := range sequences {
			if n != int64(i+1) {
				m.rt.Fatalf("ledger codes of %s are %v: not dense", class, sequences)
			}
		}
	}
}
