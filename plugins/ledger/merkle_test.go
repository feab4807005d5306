package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// naiveRoot is the Merkle tree hash as RFC 6962 section 2.1 words it.
func naiveRoot(records []string) (root tlog.Hash) {
	switch n := len(records); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, records[0]...))
	default:
		k := 1
		for 2*k < n {
			k *= 2
		}
		left, right := naiveRoot(records[:k]), naiveRoot(records[k:])
		return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
	}
}

func mustOpen(t *testing.T, dir string) (*merkleLog, *bytes.Buffer) {
	t.Helper()
	var text bytes.Buffer
	l, err := openLog(dir, hclog.New(&hclog.LoggerOptions{Output: &text, JSONFormat: true}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return l, &text
}

func mustAppend(t *testing.T, l *merkleLog, records ...string) tlog.Hash {
	t.Helper()
	_, _, root, err := l.append(records)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func reopen(t *testing.T, l *merkleLog, dir string) (*merkleLog, *bytes.Buffer) {
	t.Helper()
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, dir)
}

// TestLogIsTheNaiveTree holds the log against the definition: roots, all
// inclusion proofs and all consistency proofs, across reopening.
func TestLogIsTheNaiveTree(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	var all []string
	roots := []tlog.Hash{naiveRoot(nil)}
	for len(all) < 70 {
		batch := make([]string, 1+random.IntN(9))
		for i := range batch {
			batch[i] = strings.Repeat("r", random.IntN(50)) + fmt.Sprint(random.Uint64())
		}
		for i := range batch {
			roots = append(roots, naiveRoot(append(slices.Clip(all), batch[:i+1]...)))
		}
		all = append(all, batch...)
		if got := mustAppend(t, l, batch...); got != roots[len(all)] {
			t.Fatalf("root of %d records is %s, want %s", len(all), got, roots[len(all)])
		}
		if random.IntN(3) == 0 {
			l, _ = reopen(t, l, dir)
		}
		checkProofs(t, l, all, roots)
	}
	if size, root, err := l.verify(t.Context()); err != nil || size != int64(len(all)) || root != roots[len(all)] {
		t.Errorf("verify: %d, %s, %v", size, root, err)
	}
}

func checkProofs(t *testing.T, l *merkleLog, all []string, roots []tlog.Hash) {
	t.Helper()
	root := roots[len(all)]
	for i, record := range all {
		p, err := l.prove(int64(i))
		if err != nil || string(p.record) != record || p.root != root {
			t.Fatalf("prove %d: %+v, %v", i, p, err)
		}
		if err := tlog.CheckRecord(p.path, p.size, p.root, int64(i), tlog.RecordHash([]byte(record))); err != nil {
			t.Fatal(err)
		}
	}
	for size := range roots {
		e, err := l.extend(int64(size))
		if err != nil || e.root != root {
			t.Fatalf("extend %d: %+v, %v", size, e, err)
		}
		if size == 0 {
			continue // tlog has no proof from nothing
		}
		if err := tlog.CheckTree(e.path, e.size, e.root, int64(size), roots[size]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTornTailIsCutOff tears the last batch at every byte, and makes the file
// longer without its data: what was answered for stays, and the log goes on.
func TestTornTailIsCutOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	root := mustAppend(t, l, "one", "two", "")
	kept := l.state()
	mustAppend(t, l, "three", "four")
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, logDir, recordsFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var torn [][]byte
	for end := kept.end + 1; end < int64(len(whole)); end++ {
		torn = append(torn, whole[:end])
	}
	for _, zeros := range []int{1, batchHeader, batchHeader + 1, 5000} {
		torn = append(torn, append(whole[:kept.end:kept.end], make([]byte, zeros)...))
	}
	spoiled := bytes.Clone(whole)
	spoiled[len(spoiled)-1]++ // the last batch's pages were written out of order
	for _, file := range append(torn, spoiled) {
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		l, text := mustOpen(t, dir)
		if l.state() != kept || !strings.Contains(text.String(), "cut off") {
			t.Fatalf("%d bytes: %+v, want %+v; log %s", len(file), l.state(), kept, text)
		}
		if _, got, err := l.verify(t.Context()); err != nil || got != root {
			t.Fatalf("%d bytes: verify %s, %v", len(file), got, err)
		}
		if got := mustAppend(t, l, "five"); got != naiveRoot([]string{"one", "two", "", "five"}) {
			t.Fatalf("%d bytes: root %s after going on", len(file), got)
		}
		if l, text = reopen(t, l, dir); l.state().size != 4 || text.Len() != 0 {
			t.Fatalf("%d bytes: reopened with %+v; log %s", len(file), l.state(), text)
		}
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamageBeforeTheTailIsAnError spoils every byte of the first batch but
// those that only say that all that follows is missing.
func TestDamageBeforeTheTailIsAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	mustAppend(t, l, "one", "two")
	first := l.state().end
	mustAppend(t, l, "three")
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, logDir, recordsFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range first {
		spoiled := bytes.Clone(whole)
		spoiled[i] ^= 0x40
		if err := os.WriteFile(path, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := openLog(dir, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "corrupt") {
			t.Fatalf("byte %d: opened %v, %v", i, l, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, spoiled) {
			t.Fatalf("byte %d: the file was changed: %v", i, err)
		}
	}
}

func TestVerifyNamesWhatChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	mustAppend(t, l, "one")
	mustAppend(t, l, "two")
	at, _, err := l.index.place(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.records.WriteAt([]byte("O"), at); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.verify(t.Context()); err == nil || !strings.Contains(err.Error(), "batch at byte 0 is corrupt") {
		t.Errorf("verify: %v", err)
	}
	if _, err := l.prove(0); err == nil || !strings.Contains(err.Error(), "not what was appended") {
		t.Errorf("prove: %v", err)
	}
	forged, err := encodeBatch([]string{"One"}) // its checksums hold
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.records.WriteAt(forged, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.verify(t.Context()); err == nil || !strings.Contains(err.Error(), "record 0 is not what was appended") {
		t.Errorf("verify a forged record: %v", err)
	}
	if err := l.records.Truncate(at); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.verify(t.Context()); err == nil {
		t.Error("verify overlooked that records are gone")
	}
}

func TestOneWriter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	mustAppend(t, l, "one")
	if _, err := openLog(dir, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	if got, err := l.record(0); err != nil || string(got) != "one" {
		t.Errorf("the first one reads %q, %v", got, err)
	}
	// A child has every open file between its fork and its exec, whatever is
	// to be closed then: the log can be opened again all the same.
	child, err := unix.Dup(int(l.records.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	reopen(t, l, dir)
}

// TestFailedWrites: what does not get to disk is not in the log, and a disk that
// has room again is written to again.
func TestFailedWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	mustAppend(t, l, "one")
	before := l.state()
	writable := l.records
	var err error
	if l.records, err = os.Open(writable.Name()); err != nil { // cannot be written, nor cut
		t.Fatal(err)
	}
	for _, want := range []string{"write records", "an earlier one went wrong"} {
		if _, _, _, err := l.append([]string{"two"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("append: %v, want %s", err, want)
		}
	}
	if l.state() != before {
		t.Errorf("the log went on to %+v", l.state())
	}
	if err := errors.Join(l.records.Close(), l.close(), writable.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
}

func FuzzBatches(f *testing.F) {
	one, err := encodeBatch([]string{"one", ""})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(one)
	f.Add(append(one, one...))
	f.Add(append(one, one[:len(one)-1]...))
	f.Add(append(one, make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, file []byte) {
		batches := newBatchReader(bytes.NewReader(file), int64(len(file)))
		var again []byte
		for {
			var records []string
			err := batches.next(func(at int64, record []byte) error {
				if !bytes.Equal(file[at:at+int64(len(record))], record) {
					t.Fatalf("a record is not at %d", at)
				}
				records = append(records, string(record))
				return nil
			})
			if err != nil {
				if whole := errors.Is(err, io.EOF); whole != (batches.at == int64(len(file))) {
					t.Fatalf("ended at %d of %d: %v", batches.at, len(file), err)
				}
				break
			}
			batch, err := encodeBatch(records)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, batch...)
		}
		if !bytes.Equal(again, file[:batches.at]) {
			t.Fatal("what was read does not encode to what it was read from")
		}
	})
}
