package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// The crowd: so many calls at once, over so many connections, so many beside them
// that ask for another worker of a name that is asked for, and so many whose worker
// is really started: 900 at a time are too many for a machine that tests.
const (
	crowdCalls     = 1000
	crowdClients   = 8
	crowdConflicts = 50
	crowdStarted   = 100
)

// TestCrowd calls forge a thousand times at once, one call in ten a duplicate of
// another, on a host that looks for data races. There are exactly the distinct
// workers, each number once; a duplicate gets the worker that its twin made, and
// of two who ask for different workers of one name the second hears what is
// different.
func TestCrowd(t *testing.T) {
	t.Parallel()
	h := &host{t: t, launcher: "process", binary: raceHost(t)}
	h.setup()
	clients := make([]*client.Client, crowdClients)
	for i := range clients {
		clients[i] = h.dial(h.operator())
	}
	answers := make([]answer, crowdCalls+crowdConflicts)
	began := time.Now()
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			a := &answers[i]
			a.request = crowdRequest(i)
			a.made, a.err = clients[i%crowdClients].Forge(t.Context(), a.request)
		})
	}
	all.Wait()
	t.Logf("%d calls in %s", len(answers), time.Since(began).Round(time.Millisecond))
	h.crowdIs(answers)
	h.verifyRecord()
	h.down()
	if _, race, found := strings.Cut(h.log.String(), "WARNING: DATA RACE"); found {
		t.Errorf("the host raced:\n%s", race)
	}
}

// answer is one call and what came of it.
type answer struct {
	request client.ForgeRequest
	made    client.Forged
	err     error
}

// crowdRequest is the i-th call. The last of each ten is the one before it once
// more; those beyond crowdCalls are for another class.
func crowdRequest(i int) client.ForgeRequest {
	if i >= crowdCalls {
		r := crowdRequest((i - crowdCalls) * 20)
		r.ClassCode = "B2"
		return r
	}
	if i%10 == 9 {
		return crowdRequest(i - 1)
	}
	return client.ForgeRequest{
		Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1", Timeout: 5 * time.Minute, NoStart: i >= crowdStarted,
	}
}

// crowdIs checks all answers, and the registry.
func (h *host) crowdIs(answers []answer) {
	h.t.Helper()
	serials, made := map[string]string{}, map[string]int{}
	for _, a := range answers {
		if a.err != nil {
			continue
		}
		if was, known := serials[a.request.Name]; known && was != a.made.WorkerSerial {
			h.t.Errorf("%s is %s and %s", a.request.Name, was, a.made.WorkerSerial)
		}
		serials[a.request.Name] = a.made.WorkerSerial
		if a.made.ClassCode != a.request.ClassCode {
			h.t.Errorf("%s is of class %s, asked for %s", a.request.Name, a.made.ClassCode, a.request.ClassCode)
		}
		if !a.made.Existed {
			made[a.request.Name]++
		}
	}
	conflicts := 0
	for _, a := range answers {
		if n := made[a.request.Name]; n != 1 {
			h.t.Errorf("%s was made %d times", a.request.Name, n)
		}
		if a.err == nil {
			continue
		}
		conflicts++
		other := map[string]string{"A1": "B2", "B2": "A1"}[a.request.ClassCode]
		want := fmt.Sprintf("class_code is %s, asked for %s", other, a.request.ClassCode)
		if codeOf(a.err) != client.CodeConflict || !strings.Contains(a.err.Error(), want) {
			h.t.Errorf("%s: %v, want %s", a.request.Name, a.err, want)
		}
	}
	if conflicts != crowdConflicts {
		h.t.Errorf("%d conflicts, want %d", conflicts, crowdConflicts)
	}
	h.numbersOnce(crowdCalls - crowdCalls/10)
}

// numbersOnce checks that there are n workers and that no two share a number.
func (h *host) numbersOnce(n int) {
	h.t.Helper()
	r, err := registry.OpenReadOnly(context.Background(), filepath.Join(h.dir, "registry.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	workers, err := r.Workers(context.Background(), registry.Filter{IncludeRetired: true})
	if err != nil {
		h.t.Fatal(err)
	}
	if len(workers) != n {
		h.t.Errorf("%d workers, want %d", len(workers), n)
	}
	taken := map[string]string{}
	ledger := map[worker.ClassCode][]int64{}
	for _, w := range workers {
		switch w.State {
		case worker.StateLive, worker.StateStopped, worker.StateRestarting: // the last on a machine that is too busy
		default:
			h.t.Errorf("%s is %s", w.Name, w.State)
		}
		for _, number := range []string{w.Name, string(w.Serial), string(w.LedgerCode), fmt.Sprint("port ", w.Port), fmt.Sprint("uid ", w.UID)} {
			if other, twice := taken[number]; twice {
				h.t.Errorf("%s belongs to %s and %s", number, other, w.Name)
			}
			taken[number] = w.Name
		}
		class, sequence, err := worker.ParseLedgerCode(string(w.LedgerCode))
		if err != nil {
			h.t.Error(err)
		}
		ledger[class] = append(ledger[class], sequence)
	}
	for class, given := range ledger { // no call failed but those that took no number
		slices.Sort(given)
		if int(given[len(given)-1]) != len(given) {
			h.t.Errorf("%d ledger codes of %s up to %d", len(given), class, given[len(given)-1])
		}
	}
}

// verifyRecord checks the record with the command line tool.
func (h *host) verifyRecord() {
	h.t.Helper()
	h.eventually("the record verifies", func() error {
		if stdout, stderr, code := h.run("vault", "verify"); code != 0 {
			return fmt.Errorf("exit %d: %s%s", code, stdout, stderr)
		}
		return nil
	})
}

// raceHost builds a host that looks for data races.
func raceHost(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dals-host")
	build := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", path, "github.com/dals-host/dals-host/cmd/dals-host")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build host: %v\n%s", err, text)
	}
	return path
}
