package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// TestOutliving kills the host in the middle of a task and starts it again: the
// worker finishes, its result is recorded once, and nothing can be replayed.
func TestOutliving(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		nora := h.forge("nora", "template")
		before := h.pids(nora.WorkerSerial)
		if len(before) == 0 {
			t.Fatal("no process of the worker found")
		}
		asked, err := h.client.Sign(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.sleep", Input: map[string]int{"milliseconds": 1500}})
		if err != nil {
			t.Fatal(err)
		}
		interrupted := make(chan error, 1)
		go func() {
			_, err := h.client.SendEnvelope(context.Background(), asked, 20*time.Second)
			interrupted <- err
		}()
		h.eventually("the envelope is admitted", func() error {
			if h.count(func(e record.Entry) bool { return e.Kind == record.Admitted }) == 0 {
				return errors.New("no entry")
			}
			return nil
		})
		h.kill()
		if err := <-interrupted; err == nil {
			t.Fatal("the sender of a killed host got a result")
		}
		if after := h.pids(nora.WorkerSerial); !slices.Equal(before, after) {
			t.Fatalf("processes %v, were %v: the worker did not outlive its host", after, before)
		}
		time.Sleep(2 * time.Second) // the worker finishes while no host lives
		h.start()
		answered := func(e record.Entry) bool { return e.Kind == record.Result && e.Envelope.Status == "ok" }
		h.eventually("the result made meanwhile is recorded", func() error {
			if n := h.count(answered); n != 1 {
				return fmt.Errorf("%d results", n)
			}
			return nil
		})
		_, err = h.client.SendEnvelope(t.Context(), asked, time.Second)
		if code := codeOf(err); code != "replayed" {
			t.Fatalf("replay across the restart: %q (%v)", code, err)
		}
		h.mustSend("nora", "template.echo", map[string]string{"message": "still there"})
		if w := h.worker("nora"); w.Restarts != 0 || w.State != "live" {
			t.Fatalf("worker after the restart: %+v", w)
		}
		if after := h.pids(nora.WorkerSerial); !slices.Equal(before, after) {
			t.Fatalf("processes %v, were %v", after, before)
		}
		h.kill()
		h.start()
		h.mustSend("nora", "template.echo", map[string]string{"message": "again"})
		if n := h.count(answered); n != 3 {
			t.Fatalf("%d results recorded, want each of 3 once", n)
		}
		h.mirrored(nora.WorkerSerial, "live")
		if _, stderr, code := h.run("retire", "nora"); code != 0 {
			t.Fatalf("retire: exit %d: %s", code, stderr)
		}
		h.mirrored(nora.WorkerSerial, "retired")
		h.verify()
	})
}

// mirrored waits until the file that mirrors a worker says its state.
func (h *host) mirrored(serial, state string) {
	h.t.Helper()
	h.eventually("the worker's file says "+state, func() error {
		text, err := os.ReadFile(filepath.Join(h.dir, "workers", "instances", "worker_"+serial+".json"))
		if err != nil {
			return err
		}
		var w client.Worker
		if err := json.Unmarshal(text, &w); err != nil {
			return err
		}
		if w.State != state {
			return fmt.Errorf("state %q", w.State)
		}
		return nil
	})
}

// TestKilledAtAnyMoment kills the host again and again while clients forge and
// send. Whatever the moment: no twin, no orphan, no number twice, a record that
// verifies.
func TestKilledAtAnyMoment(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		rounds := 6
		for round := range rounds {
			ctx, cancel := context.WithCancel(t.Context())
			var busy sync.WaitGroup
			for i := range 2 {
				busy.Go(func() {
					name := fmt.Sprintf("w%d-%d", round, i)
					_, err := h.client.Forge(ctx, client.ForgeRequest{Name: name, Type: "template", ClassCode: "B2"})
					for err == nil {
						_, err = h.client.Send(ctx, client.SendRequest{Worker: name, Kind: "template.echo", Input: map[string]string{"message": name}})
					}
				})
			}
			time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond) // the moment is the point
			h.kill()
			cancel()
			busy.Wait()
			h.start()
		}
		h.settled()
		h.verify()
	})
}

// settled checks that what runs is what the registry says lives, once each, and
// nothing of what is stopped.
func (h *host) settled() {
	h.t.Helper()
	h.eventually("all workers are live or stopped", func() error {
		workers, err := h.client.Workers(h.t.Context(), client.WorkerFilter{})
		if err != nil {
			return err
		}
		serials, ports := map[string]bool{}, map[int]bool{}
		for _, w := range workers {
			processes := 1
			if w.State == "stopped" {
				processes = 0
			} else if w.State != "live" || !w.VaultIntegrity {
				return fmt.Errorf("worker %s is %s: %s %s", w.WorkerName, w.State, w.StateReason, w.VaultFault)
			}
			if serials[w.WorkerSerial] || ports[w.Port] {
				h.t.Fatalf("number twice: %+v", w)
			}
			serials[w.WorkerSerial], ports[w.Port] = true, true
			if n := len(h.pids(w.WorkerSerial)); n != processes {
				return fmt.Errorf("worker %s is %s and has %d processes", w.WorkerName, w.State, n)
			}
		}
		for pid, text := range processes() {
			if i := strings.Index(text, "DMN-"); i >= 0 && strings.Contains(text, h.id) && !serials[text[i:i+len("DMN-TP-1-00000000-00000")]] {
				return fmt.Errorf("process %d belongs to no worker: %q", pid, text)
			}
		}
		return nil
	})
	codes := map[string]bool{}
	for _, e := range h.entries() {
		if e.Kind != record.Forge && e.Kind != record.Void {
			continue
		}
		for _, number := range []string{string(e.Worker.Serial), string(e.Worker.Ledger)} {
			if codes[number] {
				h.t.Errorf("%s was given twice", number)
			}
			codes[number] = true
		}
	}
}

// verify checks the record and every worker with the command line tool.
func (h *host) verify() {
	h.t.Helper()
	h.eventually("the record verifies", func() error {
		if stdout, stderr, code := h.run("vault", "verify"); code != 0 {
			return fmt.Errorf("exit %d: %s%s", code, stdout, stderr)
		}
		return nil
	})
	workers, err := h.client.Workers(h.t.Context(), client.WorkerFilter{})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, w := range workers {
		if stdout, stderr, code := h.run("verify", w.WorkerName); code != 0 {
			h.t.Errorf("verify %s: exit %d: %s%s", w.WorkerName, code, stdout, stderr)
		}
	}
}

// TestWorkerDies ends workers in every way: each comes back once, with its state.
func TestWorkerDies(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		tests := []struct {
			name string
			end  func(serial string)
		}{
			{"killed", func(serial string) { h.signal(serial, syscall.SIGKILL) }},
			{"exits", func(string) {
				if _, err := h.send("exits", "rogue.exit", map[string]int{"n": 7}); codeOf(err) == "" {
					t.Error("a worker that ended over its task answered it")
				}
			}},
			// It hangs as a whole: only its heartbeats tell.
			{"frozen", func(serial string) { h.signal(serial, syscall.SIGSTOP) }},
		}
		var all sync.WaitGroup
		for _, test := range tests {
			w := h.forge(test.name, "rogue")
			h.mustSend(test.name, "rogue.count", map[string]int{"n": 0})
			all.Go(func() {
				test.end(w.WorkerSerial)
				h.eventually(test.name+" is back", func() error {
					w := h.worker(test.name)
					if w.State != "live" || w.Restarts != 1 {
						return fmt.Errorf("%s, %d restarts: %s", w.State, w.Restarts, w.StateReason)
					}
					return nil
				})
			})
		}
		all.Wait()
		for _, test := range tests {
			var counted struct{ N int }
			result := h.mustSend(test.name, "rogue.count", map[string]int{"n": 0})
			if err := json.Unmarshal(result.Result, &counted); err != nil || counted.N != 2 {
				t.Errorf("%s: state after the restart: %s", test.name, result.Result)
			}
		}
		if n := h.count(func(e record.Entry) bool { return e.Kind == record.WorkerRestarted }); n != len(tests) {
			t.Errorf("%d restarts recorded", n)
		}
		h.settled()
		h.verify()
	})
}

func codeOf(err error) string {
	var no *client.Error
	var task *client.TaskError
	switch {
	case errors.As(err, &no):
		return no.Code
	case errors.As(err, &task):
		return task.Code
	case err != nil:
		return "other: " + err.Error()
	}
	return ""
}
