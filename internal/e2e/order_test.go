package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// TestAnyOrder does to a real host on a real data folder, in random orders, all
// that makes, ends and interrupts workers. After every step the workers are those
// of the model, each runs once, and every number was given once. To see a run
// again, give its seed: -rapid.seed.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	enough, did := rapidly(t, 3, 30), 0
	for did < leastDone { // an order may be short
		rapid.Check(t, func(rt *rapid.T) { did += inOrder(t, rt, enough) })
	}
}

// leastDone is how much is done at least, however busy the machine is.
const leastDone = 20

// inOrder does things in one order, at the end of which the host is killed, and says
// how many.
func inOrder(t *testing.T, rt *rapid.T, enough time.Time) (did int) {
	m := &model{host: newHost(t, "process"), live: map[string]string{}, stopped: map[string]bool{}, ever: map[string]bool{}, done: map[string]int{}}
	actions := map[string]func(*rapid.T){"": func(*rapid.T) { m.check() }}
	for name, act := range map[string]func(*rapid.T){
		"forge":              m.forgeOne,
		"forge again":        m.forgeAgain,
		"retire":             m.retire,
		"forge, no start":    m.forgeStopped,
		"stop":               m.stop,
		"start":              m.startWorker,
		"restart":            m.restartWorker,
		"restart host":       func(*rapid.T) { m.restart(syscall.SIGTERM) },
		"kill host":          func(*rapid.T) { m.restart(syscall.SIGKILL) },
		"kill host forging":  m.killForging,
		"kill host changing": m.killChanging,
	} {
		actions[name] = func(rt *rapid.T) {
			if did < leastDone || time.Now().Before(enough) {
				act(rt)
				m.done[name]++
				did++
			}
		}
	}
	rt.Repeat(actions)
	m.restart(syscall.SIGKILL)
	m.check()
	m.verify()
	m.clean()
	t.Logf("%v", m.done)
	return did + 1
}

// rapidly makes rapid try so many orders of about so many steps, unless the
// command line says otherwise, and says the seed. After enough no more steps
// should be taken: on a busy machine there are fewer.
func rapidly(t *testing.T, checks, steps int) (enough time.Time) {
	t.Helper()
	enough = time.Now().Add(40 * time.Second)
	if f := flag.Lookup("rapid.checks"); f.Value.String() != f.DefValue {
		enough = time.Now().Add(time.Hour) // somebody wants them all
	}
	for name, value := range map[string]string{
		"rapid.checks": fmt.Sprint(checks), "rapid.steps": fmt.Sprint(steps), "rapid.seed": fmt.Sprint(rand.Uint64()>>1 + 1),
		"rapid.shrinktime": "1s", "rapid.nofailfile": "true",
	} {
		f := flag.Lookup(name)
		if f.Value.String() != f.DefValue {
			continue
		}
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("-rapid.seed=%s", flag.Lookup("rapid.seed").Value)
	return enough
}

// model is what there must be on a host.
type model struct {
	*host
	live    map[string]string // serials by name, also of the stopped
	stopped map[string]bool   // by name
	ever    map[string]bool   // all serials and ledger codes that were given
	voids   int               // at most: a host that was killed may not have begun
	done    map[string]int    // how often each thing was done
}

// free draws a name that nobody has.
func (m *model) free(rt *rapid.T) string {
	name := rapid.SampledFrom([]string{"ada", "ben", "cleo"}).Draw(rt, "name")
	if _, taken := m.live[name]; taken {
		rt.Skip("taken")
	}
	return name
}

func (m *model) forgeOne(rt *rapid.T) { m.made(m.forge(m.free(rt), "template")) }

func (m *model) forgeStopped(rt *rapid.T) {
	name := m.free(rt)
	made, err := m.client.Forge(m.t.Context(), client.ForgeRequest{Name: name, Type: "template", ClassCode: "A1", NoStart: true})
	if err != nil || made.State != "stopped" {
		m.t.Fatalf("%+v, %v\n%s", made.Worker, err, m.log)
	}
	m.made(made.Worker)
	m.stopped[name] = true
}

func (m *model) stop(rt *rapid.T) {
	name := m.one(rt)
	if _, err := m.client.Stop(m.t.Context(), name, time.Second); err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	m.stopped[name] = true
}

func (m *model) startWorker(rt *rapid.T) {
	name := m.one(rt)
	if _, err := m.client.Start(m.t.Context(), name, 0); err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	m.stopped[name] = false
}

func (m *model) restartWorker(rt *rapid.T) {
	name := m.one(rt)
	if _, err := m.client.Restart(m.t.Context(), name, time.Second, 0); err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	m.stopped[name] = false
}

// made takes a worker into the model; all its numbers must be new.
func (m *model) made(w client.Worker) {
	m.t.Helper()
	if m.ever[w.WorkerSerial] || m.ever[w.LedgerCode] {
		m.t.Fatalf("a number of %s, %s was given before", w.WorkerSerial, w.LedgerCode)
	}
	m.ever[w.WorkerSerial], m.ever[w.LedgerCode] = true, true
	m.live[w.WorkerName] = w.WorkerSerial
}

// one draws a worker that lives.
func (m *model) one(rt *rapid.T) string {
	if len(m.live) == 0 {
		rt.Skip("nobody lives")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(m.live))).Draw(rt, "who")
}

func (m *model) forgeAgain(rt *rapid.T) {
	name := m.one(rt)
	made, err := m.client.Forge(m.t.Context(), client.ForgeRequest{Name: name, Type: "template", ClassCode: "A1"})
	if err != nil || !made.Existed || made.WorkerSerial != m.live[name] {
		m.t.Fatalf("%s again: %+v, %v", name, made, err)
	}
	_, err = m.client.Forge(m.t.Context(), client.ForgeRequest{Name: name, Type: "template", ClassCode: "B2"})
	if codeOf(err) != client.CodeConflict {
		m.t.Fatalf("another %s: %v", name, err)
	}
}

func (m *model) retire(rt *rapid.T) {
	name := m.one(rt)
	if _, err := m.client.Retire(m.t.Context(), name, time.Second); err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	delete(m.live, name)
	delete(m.stopped, name)
}

// restart ends the host by a signal and starts it again.
func (m *model) restart(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
	if err := m.cmd.Wait(); err != nil && s == syscall.SIGTERM {
		m.t.Fatalf("host: %v\n%s", err, m.log)
	}
	m.startAgain()
}

// startAgain starts the next host, and waits until the client has found it.
func (m *model) startAgain() {
	m.t.Helper()
	m.start()
	m.eventually("the client finds the host again", func() error {
		_, err := m.client.Status(m.t.Context())
		return err
	})
}

// killForging kills the host at some moment of a forge: the worker is whole or
// was never there.
func (m *model) killForging(rt *rapid.T) {
	const name = "zoe"
	if _, taken := m.live[name]; taken {
		rt.Skip("taken")
	}
	m.killWhile(rt, func(ctx context.Context) {
		_, _ = m.client.Forge(ctx, client.ForgeRequest{Name: name, Type: "template", ClassCode: "A1"})
	})
	m.voids++
	w, err := m.client.Worker(m.t.Context(), name)
	switch {
	case err == nil && w.State != "retired":
		m.made(w.Worker)
	case err != nil && codeOf(err) != client.CodeNotFound:
		m.t.Fatal(err)
	}
}

// killWhile kills the host at some moment of a call, and starts it again.
func (m *model) killWhile(rt *rapid.T, call func(context.Context)) {
	m.t.Helper()
	moment := time.Duration(rapid.IntRange(0, 150).Draw(rt, "milliseconds")) * time.Millisecond
	ctx, cancel := context.WithCancel(m.t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); call(ctx) }()
	time.Sleep(moment) // the moment is the point
	m.kill()
	cancel()
	<-ended
	m.startAgain()
}

// killChanging kills the host at some moment of a change to a worker: the change
// was made, or was not.
func (m *model) killChanging(rt *rapid.T) {
	name := m.one(rt)
	change := rapid.SampledFrom([]string{"retire", "stop", "start", "restart"}).Draw(rt, "change")
	m.killWhile(rt, func(ctx context.Context) {
		switch change {
		case "retire":
			_, _ = m.client.Retire(ctx, name, time.Second)
		case "stop":
			_, _ = m.client.Stop(ctx, name, time.Second)
		case "start":
			_, _ = m.client.Start(ctx, name, 0)
		case "restart":
			_, _ = m.client.Restart(ctx, name, time.Second, 0)
		}
	})
	before, now := "running", m.worker(name).State
	if m.stopped[name] {
		before = "stopped"
	}
	if now == "live" || now == "restarting" {
		now = "running"
	}
	after := map[string]string{"retire": "retired", "stop": "stopped", "start": "running", "restart": "running"}[change]
	if now != before && now != after {
		m.t.Fatalf("%s was %s, and is %s after a %s that was cut off\n%s", name, before, now, change, m.log)
	}
	m.stopped[name] = now == "stopped"
	if now == "retired" {
		delete(m.live, name)
	}
}

// check compares the host with the model.
func (m *model) check() {
	m.t.Helper()
	workers, err := m.client.Workers(m.t.Context(), client.WorkerFilter{})
	if err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	found := map[string]string{}
	for _, w := range workers {
		found[w.WorkerName] = w.WorkerSerial
		if m.stopped[w.WorkerName] != (w.State == "stopped") {
			m.t.Fatalf("%s is %s\n%s", w.WorkerName, w.State, m.log)
		}
	}
	if !maps.Equal(found, m.live) {
		m.t.Fatalf("workers %v, want %v\n%s", found, m.live, m.log)
	}
	m.settled()
	voids := 0
	given := map[worker.ClassCode][]int64{}
	for _, e := range m.entries() {
		if e.Kind != record.Forge && e.Kind != record.Void {
			continue
		}
		if e.Kind == record.Void {
			voids++
		}
		class, sequence, err := worker.ParseLedgerCode(string(e.Worker.Ledger))
		if err != nil {
			m.t.Fatal(err)
		}
		given[class] = append(given[class], sequence)
	}
	if voids > m.voids {
		m.t.Fatalf("%d voids, at most %d forges failed", voids, m.voids)
	}
	for class, sequences := range given {
		slices.Sort(sequences)
		for i, n := range sequences {
			if n != int64(i+1) {
				m.t.Fatalf("ledger codes of %s are %v: not dense", class, sequences)
			}
		}
	}
}
