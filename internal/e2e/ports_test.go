package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/sdk/client"
)

// hostWithPorts is a host of plain processes whose workers get one of n ports in
// a row, and the first of them.
func hostWithPorts(t *testing.T, n int) (h *host, low int) {
	t.Helper()
	low = freePorts(t, n)
	return hostOnPorts(t, low, low+n-1), low
}

func hostOnPorts(t *testing.T, low, high int) *host {
	t.Helper()
	h := &host{t: t, launcher: "process", flags: []string{"--ports", fmt.Sprintf("%d-%d", low, high)}}
	h.setup()
	return h
}

var portsGiven sync.Map // the first of the ports that a test has for itself

// freePorts is the first of n ports in a row that nobody holds, away from those
// that hosts take by default.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for low := 12000; low < 19000; low += 100 {
		if _, given := portsGiven.LoadOrStore(low, true); given {
			continue
		}
		free := func(port int) bool {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err == nil {
				l.Close()
			}
			return err == nil
		}
		taken := false
		for port := low; port < low+n; port++ {
			taken = taken || !free(port)
		}
		if !taken {
			return low
		}
	}
	t.Fatal("no free ports")
	return 0
}

// takePort is somebody else on a port.
func takePort(t *testing.T, port int) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// identityAt is who answers on a port, in one of the families.
func identityAt(address string, port int) (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := c.Get(fmt.Sprintf("http://%s:%d/identity", address, port))
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// answersAs checks that a worker's port answers as that worker, in every family
// that the machine has.
func answersAs(w client.Worker) error {
	addresses := []string{"127.0.0.1"}
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		addresses = append(addresses, "[::1]")
	}
	for _, address := range addresses {
		said, err := identityAt(address, w.Port)
		if err != nil || !strings.Contains(said, w.WorkerSerial) {
			return fmt.Errorf("%s:%d, the port of %s, says %q: %w", address, w.Port, w.WorkerName, said, err)
		}
	}
	return nil
}

func (h *host) tryForge(name string) (client.Worker, error) {
	h.t.Helper()
	made, err := h.client.Forge(h.t.Context(), client.ForgeRequest{Name: name, Type: "template", ClassCode: "A1"})
	return made.Worker, err
}

func (h *host) degraded() []string {
	h.t.Helper()
	status, err := h.client.Status(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return status.Degraded
}

// wantExhausted checks that no port is left, and that the host says which and
// what to do.
func (h *host) wantExhausted(low, high int) {
	h.t.Helper()
	_, err := h.tryForge("one-too-many")
	var no *client.Error
	if !errors.As(err, &no) || no.Code != "exhausted" || !strings.Contains(no.Message, fmt.Sprintf("%d to %d", low, high)) ||
		!strings.Contains(no.Hint, "serve --ports LOW-HIGH") {
		h.t.Fatalf("forge without a port left: %v", err)
	}
}

// TestPorts follows the ports of one host: somebody else's is passed over, none
// left is said so, a retired worker's rests, also over a restart.
func TestPorts(t *testing.T) {
	t.Parallel()
	h, low := hostWithPorts(t, 3)
	takePort(t, low)
	nora, ben := h.forge("nora", "template"), h.forge("ben", "template")
	if got := []int{min(nora.Port, ben.Port), max(nora.Port, ben.Port)}; !slices.Equal(got, []int{low + 1, low + 2}) {
		t.Fatalf("ports %v, want all but the foreign %d", got, low)
	}
	for _, w := range []client.Worker{nora, ben} {
		if err := answersAs(w); err != nil {
			t.Error(err)
		}
	}
	h.wantExhausted(low, low+2)
	if _, stderr, code := h.run("retire", "nora"); code != 0 {
		t.Fatalf("retire: exit %d: %s", code, stderr)
	}
	h.wantExhausted(low, low+2)
	h.kill()
	h.start()
	h.wantExhausted(low, low+2)
	if err := answersAs(ben); err != nil {
		t.Error(err)
	}
	// More ports, and the workers that there are keep theirs.
	h.kill()
	more := freePorts(t, 1)
	h.flags = []string{"--ports", fmt.Sprintf("%d-%d", more, more)}
	h.start()
	ada := h.forge("ada", "template")
	if ada.Port != more {
		t.Errorf("port %d, want %d", ada.Port, more)
	}
	for _, w := range []client.Worker{ada, ben} {
		if err := answersAs(w); err != nil {
			t.Error(err)
		}
	}
}

// TestPortTakenMeanwhile: while no host runs, somebody takes a worker's port.
// That worker's HTTP is degraded and nothing else; it comes back by itself.
func TestPortTakenMeanwhile(t *testing.T) {
	t.Parallel()
	h, _ := hostWithPorts(t, 4)
	nora, ben := h.forge("nora", "template"), h.forge("ben", "template")
	h.kill()
	other := takePort(t, nora.Port)
	h.start()
	if said := h.degraded(); len(said) != 1 || !strings.Contains(said[0], nora.WorkerSerial) || !strings.Contains(said[0], fmt.Sprint(nora.Port)) {
		t.Fatalf("degraded: %q", said)
	}
	if stdout, _, _ := h.run("doctor"); !strings.Contains(stdout, nora.WorkerSerial) {
		t.Errorf("doctor does not say it:\n%s", stdout)
	}
	if w := h.worker("nora"); w.State != "live" || !strings.Contains(w.PortFault, fmt.Sprint(nora.Port)) {
		t.Errorf("the worker: %+v", w)
	}
	if w := h.worker("ben"); w.PortFault != "" {
		t.Errorf("the other worker: %+v", w)
	}
	for _, args := range [][]string{{"workers"}, {"worker", "nora"}} {
		if stdout, _, _ := h.run(args...); !strings.Contains(stdout, "in use") && !strings.Contains(stdout, "not served") {
			t.Errorf("%v does not say it:\n%s", args, stdout)
		}
	}
	if err := answersAs(ben); err != nil {
		t.Error(err)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "all the same"})
	other.Close()
	h.eventually("the port is back", func() error { return answersAs(nora) })
	if said := h.degraded(); len(said) != 0 {
		t.Errorf("still degraded: %q", said)
	}
	if w := h.worker("nora"); w.PortFault != "" {
		t.Errorf("the worker still: %+v", w)
	}
}

// TestTwoHostsOnOneRange: no port is given twice, and one that a host could not
// defend because it was dead is its again once the other host lets go.
func TestTwoHostsOnOneRange(t *testing.T) {
	t.Parallel()
	a, low := hostWithPorts(t, 4)
	b := hostOnPorts(t, low, low+3)
	var all sync.WaitGroup
	made := make([]client.Worker, 4)
	for i := range made {
		all.Go(func() {
			var err error
			if made[i], err = []*host{a, b}[i%2].tryForge(fmt.Sprint("w", i)); err != nil {
				t.Errorf("forge w%d: %v", i, err)
			}
		})
	}
	all.Wait()
	ports := map[int]bool{}
	for _, w := range made {
		if err := answersAs(w); err != nil || ports[w.Port] {
			t.Errorf("port %d: %v", w.Port, err)
		}
		ports[w.Port] = true
	}
	if t.Failed() {
		return
	}
	a.wantExhausted(low, low+3)
	b.wantExhausted(low, low+3)
	a.kill()
	squatter := b.forge("squatter", "template")
	a.start()
	owner := made[0]
	if squatter.Port == made[2].Port {
		owner = made[2]
	}
	if said := a.degraded(); len(said) != 1 || !strings.Contains(said[0], owner.WorkerSerial) {
		t.Fatalf("degraded: %q, want %s", said, owner.WorkerSerial)
	}
	if err := answersAs(squatter); err != nil {
		t.Error(err)
	}
	if _, stderr, code := b.run("retire", "squatter"); code != 0 {
		t.Fatalf("retire: exit %d: %s", code, stderr)
	}
	a.eventually("the port is its owner's again", func() error { return answersAs(owner) })
}
