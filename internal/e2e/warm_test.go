package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dals-host/dals-host/sdk/client"
)

// TestWarm: forges claim what is kept warm and are cold when nothing is left; a host
// that is killed leaves nothing warm that the next one does not remove, one that ends
// by itself leaves nothing, and so does down.
func TestWarm(t *testing.T) {
	t.Parallel()
	const ready = 2
	h := &host{t: t, launcher: "containerd", flags: []string{"--warm", fmt.Sprintf("template=%d", ready)}}
	h.setup()
	h.awaitWarm(ready)
	nora := h.forge("nora", "template")
	if claimed := strings.Count(h.log.String(), "is claimed"); claimed != 1 {
		t.Errorf("%d forges claimed a container", claimed)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "hello"})
	h.awaitWarm(ready + 1)
	before := h.warm(ready, nora)

	h.kill()
	h.start()
	h.awaitWarm(2*ready + 1)
	for serial := range h.warm(ready, nora) {
		if before[serial] {
			t.Errorf("%s was kept warm by the host that was killed", serial)
		}
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "again"})

	var others []client.Worker // more than are kept warm
	forged := make(chan client.Worker)
	for i := range 2 * ready {
		go func() {
			made, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1"})
			if err != nil {
				t.Error(err)
			}
			forged <- made.Worker
		}()
	}
	for range 2 * ready {
		others = append(others, <-forged)
	}
	h.verify()

	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	h.warm(0, append(others, nora)...)
	h.start() // clean takes it down while it makes the next
}

// TestWarmElsewhere: under a containerd of the operator's, too, forges claim what is
// kept warm, and it is removed by the next host and by down.
func TestWarmElsewhere(t *testing.T) {
	t.Parallel()
	o := newOperators(t)
	h := &host{t: t, launcher: "containerd", flags: []string{"--containerd", o.address, "--warm", "template=1"}}
	h.setup()
	h.awaitWarm(1)
	containers := func() []string { return o.list("dals-"+h.id, "containers") }
	first := containers()
	nora := h.forge("nora", "template")
	if len(first) != 1 || nora.WorkerSerial != first[0] {
		t.Errorf("forged %s, kept warm were %v", nora.WorkerSerial, first)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "hello"})
	h.awaitWarm(2)
	second := containers()
	h.kill()
	h.start()
	h.awaitWarm(3)
	if now := containers(); len(second) != 2 || len(now) != 2 || slices.Equal(second, now) || !slices.Contains(now, nora.WorkerSerial) {
		t.Errorf("there are %v, the host that was killed had %v", now, second)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "again"})
	h.down()
	if left := o.list("default", "namespaces"); slices.Contains(left, "dals-"+h.id) {
		t.Errorf("left: %v", left)
	}
}

// warm waits until what runs for the host beside these workers is n containers that
// wait to be claimed, and gives their serials.
func (h *host) warm(n int, workers ...client.Worker) (serials map[string]bool) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%d containers are kept warm", n), func() error {
		found := map[string]int{} // processes
		for _, text := range processes() {
			if i := strings.Index(text, "DMN-"); i >= 0 && strings.Contains(text, h.id) {
				found[text[i:i+len("DMN-TP-1-00000000-00000")]]++
			}
		}
		for _, w := range workers {
			if found[w.WorkerSerial] != 1 {
				return fmt.Errorf("worker %s has %d processes", w.WorkerName, found[w.WorkerSerial])
			}
			delete(found, w.WorkerSerial)
		}
		serials = map[string]bool{}
		for serial, processes := range found {
			if processes != 1 {
				return fmt.Errorf("%s has %d processes", serial, processes)
			}
			serials[serial] = true
		}
		if len(serials) != n {
			return fmt.Errorf("there are %d: %v", len(serials), found)
		}
		return nil
	})
	return serials
}
