package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/formats/log"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dals-host/dals-host/sdk/workertest"
)

func TestMain(m *testing.M) {
	workertest.Main(newType, func() { goleak.VerifyTestMain(m) })
}

func TestConformance(t *testing.T) { workertest.Conformance(t, os.Args[0], newType) }

func TestDescriptor(t *testing.T) { workertest.Golden(t, newType) }

// ask sends a task that shall be done, and reads its output.
func ask[Out any](t *testing.T, w *workertest.Worker, kind string, in any) (out Out) {
	t.Helper()
	a := w.Send(t.Context(), kind, in)
	if err := json.Unmarshal(a.Output, &out); err != nil {
		t.Fatalf("%s: %s", kind, a)
	}
	return out
}

// openCheckpoint checks a checkpoint as anybody can who knows the worker's key.
func openCheckpoint(t *testing.T, w *workertest.Worker, s signed) tlog.Tree {
	t.Helper()
	serial := w.Identity.WorkerSerial
	key, err := note.NewEd25519VerifierKey(serial, w.Identity.PublicKey)
	if err != nil || key != s.VerifierKey {
		t.Fatalf("verifier key %q, want %q (%v)", s.VerifierKey, key, err)
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	c, _, _, err := log.ParseCheckpoint([]byte(s.Checkpoint), serial, verifier)
	if err != nil {
		t.Fatal(err)
	}
	tree := tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Hash)}
	if tree.N != s.Size || tree.Hash.String() != s.Root {
		t.Fatalf("checkpoint of %d %s beside size %d, root %s", tree.N, tree.Hash, s.Size, s.Root)
	}
	return tree
}

func parseHashes(t *testing.T, texts []string) []tlog.Hash {
	t.Helper()
	hashes := make([]tlog.Hash, len(texts))
	for i, text := range texts {
		var err error
		if hashes[i], err = tlog.ParseHash(text); err != nil {
			t.Fatal(err)
		}
	}
	return hashes
}

func TestLedger(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType)
	empty := openCheckpoint(t, w, ask[checkpointOutput](t, w, "ledger.checkpoint", checkpointInput{}).signed)
	if empty.N != 0 || empty.Hash != naiveRoot(nil) {
		t.Errorf("empty ledger: %+v", empty)
	}

	first := ask[appendOutput](t, w, "ledger.append", appendInput{Record: "eins"})
	if first.Index != 0 || first.Size != 1 || first.Root != naiveRoot([]string{"eins"}).String() {
		t.Errorf("append: %+v", first)
	}
	early := openCheckpoint(t, w, ask[checkpointOutput](t, w, "ledger.checkpoint", checkpointInput{}).signed)
	all := []string{"eins", "zwei 🐐", "", "vier\nfünf"}
	many := ask[appendManyOutput](t, w, "ledger.append_many", appendManyInput{Records: all[1:]})
	if many.FirstIndex != 1 || many.Count != 3 || many.Size != 4 || many.Root != naiveRoot(all).String() {
		t.Errorf("append_many: %+v", many)
	}

	later := ask[checkpointOutput](t, w, "ledger.checkpoint", checkpointInput{Since: 1})
	now := openCheckpoint(t, w, later.signed)
	if err := tlog.CheckTree(parseHashes(t, later.Proof), now.N, now.Hash, early.N, early.Hash); err != nil {
		t.Errorf("later checkpoint: %v", err)
	}
	for i, record := range all {
		if got := ask[getOutput](t, w, "ledger.get", indexInput{Index: int64(i)}); got.Record != record {
			t.Errorf("get %d: %q", i, got.Record)
		}
		p := ask[proveOutput](t, w, "ledger.prove", indexInput{Index: int64(i)})
		tree := openCheckpoint(t, w, p.signed)
		if err := tlog.CheckRecord(parseHashes(t, p.Proof), tree.N, tree.Hash, int64(i), tlog.RecordHash([]byte(record))); err != nil {
			t.Errorf("prove %d: %v", i, err)
		}
	}
	if got := ask[tree](t, w, "ledger.verify", verifyInput{}); got != later.tree {
		t.Errorf("verify: %+v, want %+v", got, later.tree)
	}
}

func TestRefusedInput(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, newType, workertest.Config(config{MaxRecordBytes: 8}))
	for _, c := range []struct {
		kind string
		in   any
		code string
	}{
		{"ledger.append", appendInput{Record: "123456789"}, "record_too_large"},
		{"ledger.append_many", appendManyInput{}, "bad_count"},
		{"ledger.append_many", appendManyInput{Records: make([]string, maxMany+1)}, "bad_count"},
		{"ledger.append_many", appendManyInput{Records: []string{"a", "123456789"}}, "record_too_large"},
		{"ledger.get", indexInput{Index: 0}, "no_such_record"},
		{"ledger.prove", indexInput{Index: -1}, "no_such_record"},
		{"ledger.checkpoint", checkpointInput{Since: 1}, "no_such_size"},
	} {
		if a := w.Send(t.Context(), c.kind, c.in); a.OK() || a.Code != c.code {
			t.Errorf("%s %v: %s, want %s", c.kind, c.in, a, c.code)
		}
	}
	if got := ask[tree](t, w, "ledger.verify", verifyInput{}); got.Size != 0 {
		t.Errorf("refused records were appended: %+v", got)
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{-1, maxRecord + 1} {
		w := workertest.New(t, newType, workertest.Config(config{MaxRecordBytes: limit}))
		if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "max_record_bytes") {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

// TestKilledInMidAppend kills a real worker with SIGKILL while many append, and
// a few times over: what was answered for is there, at its index, and the log
// holds.
func TestKilledInMidAppend(t *testing.T) {
	t.Parallel()
	w := workertest.StartBinary(t, os.Args[0])
	answered := map[int64]string{}
	for round := range 4 {
		for index, record := range appendUntilKilled(t, w, round) {
			if other, ok := answered[index]; ok {
				t.Fatalf("index %d was given to %q and %q", index, other, record)
			}
			answered[index] = record
		}
		tear(t, w, round)
		w.Start()
		now := ask[tree](t, w, "ledger.verify", verifyInput{})
		if now.Size < int64(len(answered)) {
			t.Fatalf("%d records, %d were answered for", now.Size, len(answered))
		}
		for index, record := range answered {
			if got := ask[getOutput](t, w, "ledger.get", indexInput{Index: index}); got.Record != record {
				t.Fatalf("record %d is %q, was %q", index, got.Record, record)
			}
		}
	}
	if !strings.Contains(w.Log(), "cut off") {
		t.Error("no torn batch was logged")
	}
}

// appendUntilKilled gives back the records that were answered for.
func appendUntilKilled(t *testing.T, w *workertest.Worker, round int) map[int64]string {
	t.Helper()
	const writers, enough = 4, 25
	var mu sync.Mutex
	var group sync.WaitGroup
	answered, kill := map[int64]string{}, make(chan struct{}, writers)
	for writer := range writers {
		group.Go(func() {
			for i := 0; ; i++ {
				record := fmt.Sprintf("round %d writer %d record %d", round, writer, i)
				a, err := w.TrySend(t.Context(), "ledger.append", appendInput{Record: record})
				var out appendOutput
				if err != nil || json.Unmarshal(a.Output, &out) != nil {
					return // killed
				}
				mu.Lock()
				answered[out.Index] = record
				if len(answered) == enough {
					kill <- struct{}{}
				}
				mu.Unlock()
			}
		})
	}
	<-kill
	w.Kill()
	group.Wait()
	return answered
}

// tear leaves a part of a batch, as a worker does that dies while it writes,
// unless the worker has done so itself.
func tear(t *testing.T, w *workertest.Worker, round int) {
	t.Helper()
	batch, err := encodeBatch(slices.Repeat([]string{"torn"}, 3))
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(filepath.Join(w.Dir, "state", logDir, recordsFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	batches := newBatchReader(file, end)
	for err == nil {
		err = batches.next(func(int64, []byte) error { return nil })
	}
	if !errors.Is(err, io.EOF) {
		t.Logf("the worker left: %v", err)
		return
	}
	if _, err := file.WriteAt(batch[:1+round*(len(batch)-2)/3], end); err != nil {
		t.Fatal(err)
	}
}
