package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
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

// The crowd: so many calls at once, over so many connections, and so many of
// those calls whose worker is really started. With them come so many that ask for
// another worker of a name that one of them has.
const (
	crowdCalls   = 1000
	crowdClients = 8
	crowdStarted = 100
	crowdRivals  = 50
)

// TestCrowd calls forge a thousand times at once, one call in ten a duplicate of
// another, on a host that looks for data races. There are exactly the distinct
// workers, each number once, and a duplicate gets the worker that its twin made.
// On top of the thousand come rivals, which ask for other workers of names that
// are asked for: of each such name one or the other is made, and who loses hears
// which fields are different. The workers of the first hundred calls are started;
// the others are forged and left stopped, because 900 that run do not fit a test.
func TestCrowd(t *testing.T) {
	t.Parallel()
	h := &host{t: t, launcher: "process", binary: raceHost(t)}
	h.setup()
	clients := make([]*client.Client, crowdClients)
	for i := range clients {
		clients[i] = h.dial(h.operator())
	}
	answers := make([]answer, crowdCalls+crowdRivals)
	began := time.Now()
	var all sync.WaitGroup
	for _, i := range rand.Perm(len(answers)) {
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

// crowdRequest is the i-th call. Of each ten the last is the same as the one before
// it. The rivals, after the thousand, have the names of calls that are spread over
// them, every other one with a duplicate, and ask for another class and config.
func crowdRequest(i int) client.ForgeRequest {
	if i >= crowdCalls {
		k := i - crowdCalls
		r := crowdRequest(k*(crowdCalls/crowdRivals) + 8*(k%2))
		r.ClassCode, r.Config = "B2", map[string]string{"greeting": "hi"}
		return r
	}
	if i%10 == 9 {
		i--
	}
	return client.ForgeRequest{
		Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1", Timeout: 5 * time.Minute, NoStart: i >= crowdStarted,
	}
}

// crowdIs checks all answers, and the registry.
func (h *host) crowdIs(answers []answer) {
	h.t.Helper()
	is, made := map[string]client.Worker{}, map[string]int{}
	for _, a := range answers {
		if a.err != nil {
			continue
		}
		if was, known := is[a.request.Name]; known && was.WorkerSerial != a.made.WorkerSerial {
			h.t.Errorf("%s is %s and %s", a.request.Name, was.WorkerSerial, a.made.WorkerSerial)
		}
		is[a.request.Name] = a.made.Worker
		if !a.made.Existed {
			made[a.request.Name]++
		}
	}
	got, refused := 0, 0
	for _, a := range answers {
		if n := made[a.request.Name]; n != 1 {
			h.t.Errorf("%s was made %d times", a.request.Name, n)
		}
		if has := is[a.request.Name].ClassCode; has != a.request.ClassCode {
			refused++
			h.lost(a, has)
			continue
		}
		if got++; a.err != nil {
			h.t.Errorf("%s: %v", a.request.Name, a.err)
		}
	}
	h.t.Logf("%d calls have the worker that they asked for, %d lost to another", got, refused)
	if refused < crowdRivals { // of each pair of rivals one
		h.t.Errorf("%d calls lost, want at least %d", refused, crowdRivals)
	}
	h.numbersOnce(crowdCalls - crowdCalls/10)
}

// lost checks what a call was told whose name has gone to a worker of that class.
func (h *host) lost(a answer, class string) {
	h.t.Helper()
	greets := map[string]string{"A1": "hello", "B2": "hi"}
	want := fmt.Sprintf(`class_code is %s, asked for %s; config is {"greeting":%q}, asked for {"greeting":%q}`,
		class, a.request.ClassCode, greets[class], greets[a.request.ClassCode])
	if codeOf(a.err) != client.CodeConflict || !strings.Contains(a.err.Error(), want) {
		h.t.Errorf("%s: %v, want %s", a.request.Name, a.err, want)
	}
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
