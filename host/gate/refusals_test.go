package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestHangingUpLeavesATrace refuses an envelope whose sender does not wait.
func TestHangingUpLeavesATrace(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	env := sign(t, w.enrol(t, "nora"), `{"message":7}`, nil)
	ctx, hangUp := context.WithCancel(t.Context())
	hangUp()
	if _, err := g.Admit(ctx, "p", env); codeOf(err) != SchemaMismatch {
		t.Fatal(err)
	}
	if len(w.entries) != 1 {
		t.Fatalf("%d entries", len(w.entries))
	}
}

// TestRefusedIsAlwaysRecorded gives the record reasons of every kind.
func TestRefusedIsAlwaysRecorded(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	a, err := g.Admit(t.Context(), "p", sign(t, w.enrol(t, "nora"), `{"message":"hi"}`, nil))
	if err != nil {
		t.Fatal(err)
	}
	for i, reason := range []string{"", strings.Repeat("\x00", 70_000), strings.Repeat("é", 70_000), strings.Repeat("\xff", 70_000), "a\xc3"} {
		if err := g.Refused(t.Context(), strings.Repeat("\xff", 5000), a, worker.Refuse("worker_unavailable", "%s", reason)); !errors.Is(err, worker.ErrRefused) {
			t.Error(err)
		}
		if len(w.entries) != i+1 || utf8.RuneCountInString(w.entries[i].Refusal.Reason) > maxReason {
			t.Fatalf("%.20q: %d entries, the last is %+v", reason, len(w.entries), w.entries[len(w.entries)-1].Refusal)
		}
	}
}

func TestRates(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	stranger := sign(t, w.enrol(t, "revoked"), `{"message":"x"}`, nil)
	codes := map[string]int{}
	for range 3*peerRate + 1 {
		_, err := g.Admit(t.Context(), "uid=7", stranger)
		codes[codeOf(err)]++
	}
	if codes[SenderRevoked] != 2*peerRate || codes[RateLimited] != peerRate+1 {
		t.Fatalf("codes %v", codes)
	}
	if _, err := g.Admit(t.Context(), "uid=8", stranger); codeOf(err) != SenderRevoked {
		t.Fatalf("another peer: %v", err)
	}
	// All that noise is a few entries, and none names the claimed sender.
	g.refusals.summarize(t.Context())
	if len(w.entries) != 3 {
		t.Fatalf("%d entries", len(w.entries))
	}
	var total uint64
	for _, e := range w.entries {
		if text, _ := json.Marshal(e); e.Kind != record.RefusedSummary || strings.Contains(string(text), "key:") {
			t.Fatalf("entry %s", text)
		}
		total += e.Refusal.Count
	}
	if total != 3*peerRate+2 {
		t.Fatalf("%d refusals told of", total)
	}
}

// TestRun tells of early refusals once a minute, and of the last ones at the end.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		g := w.gate(t)
		ctx, end := context.WithCancel(t.Context())
		running := make(chan error)
		go func() { running <- g.Run(ctx) }()
		refuse := func(n int) {
			for range n {
				if _, err := g.Admit(t.Context(), "uid=7 pid=8", &workerv1.Envelope{Header: []byte{0xff}}); codeOf(err) != Malformed {
					t.Fatal(err)
				}
			}
		}
		told := func() (counts []uint64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range w.entries {
				if e.Kind != record.RefusedSummary || e.Refusal.Code != Malformed || e.Refusal.Peer != "uid=7 pid=8" {
					t.Errorf("entry %+v", e)
				}
				counts = append(counts, e.Refusal.Count)
			}
			return counts
		}
		refuse(3)
		time.Sleep(summaryEvery - time.Second)
		synctest.Wait()
		if counts := told(); counts != nil {
			t.Errorf("too soon: %v", counts)
		}
		time.Sleep(2 * time.Second)
		refuse(2)
		end()
		if err := <-running; err != nil {
			t.Error(err)
		}
		if counts := told(); !slices.Equal(counts, []uint64{3, 2}) {
			t.Errorf("told of %v", counts)
		}
	})
}

func TestPeersAreBounded(t *testing.T) {
	w := newWorld()
	g := w.gate(t)
	env := &workerv1.Envelope{Header: []byte{0xff}}
	for i := range 3 * maxPeers {
		if _, err := g.Admit(t.Context(), fmt.Sprint(i), env); codeOf(err) != Malformed {
			t.Fatal(err)
		}
	}
	if n := len(g.refusals.counts); n > maxPeers+1 {
		t.Fatalf("%d counts", n)
	}
	w.now = w.now.Add(time.Hour)
	if _, err := g.Admit(t.Context(), "last", env); codeOf(err) != Malformed {
		t.Fatal(err)
	}
	if n := len(g.peers.byName); n != 1 {
		t.Fatalf("%d limiters after an idle hour", n)
	}
}
