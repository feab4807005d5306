package registry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

func TestSeenNumbersAreNotGivenAgain(t *testing.T) {
	r := openTest(t)
	update(t, r, func(tx *Tx) error {
		return errors.Join(
			tx.SeenNumbers("DMN-TP-1-deadbeef-00010", "A1-000007"),
			tx.SeenNumbers("DMN-TP-1-deadbeef-00003", "A1-000002"),
			tx.SeenNumbers("DMN-LG-2-0badcafe-fffff", "B2-1000000"),
			tx.SeenNumbers("DMN-LG-2-0badcafe-00001", ""),
			tx.TakeUID(1005),
			tx.JumpCounters(1000, 1000, 9999),
		)
	})
	for _, c := range []struct {
		class worker.ClassCode
		want  worker.LedgerCode
	}{{"A1", "A1-001008"}, {"B2", "B2-1001001"}, {"C3", "C3-001001"}, {"C3", "C3-001002"}} {
		update(t, r, func(tx *Tx) error {
			got, err := tx.AllocateLedgerCode(c.class)
			if got != c.want {
				t.Errorf("ledger code %s, want %s", got, c.want)
			}
			return err
		})
	}
	update(t, r, func(tx *Tx) error {
		// 0badcafe, seen last, is full: another shard is drawn.
		serial, err := tx.AllocateSerial("DMN-TP-1")
		if tail := string(serial)[9:]; tail[:8] == "0badcafe" || tail[:8] == "deadbeef" {
			t.Errorf("serial %s is of a shard that was seen full", serial)
		}
		uid, err2 := tx.AllocateUID(1000, 9999)
		next, err3 := tx.AllocateUID(1000, 9999)
		if uid != 2005 || next != 2006 {
			t.Errorf("uids %d and %d, want 2005 and 2006", uid, next)
		}
		return errors.Join(err, err2, err3)
	})
}

func TestSeenShardIsGoneOnWith(t *testing.T) {
	r := openTest(t)
	update(t, r, func(tx *Tx) error {
		return errors.Join(tx.SeenNumbers("DMN-TP-1-deadbeef-00010", "A1-000007"), tx.JumpCounters(1000, 0, 0))
	})
	update(t, r, func(tx *Tx) error {
		serial, err := tx.AllocateSerial("DMN-TP-1")
		if want := worker.NewSerial("DMN-TP-1", 0xdeadbeef, 0x11+1000); serial != want {
			t.Errorf("serial %s, want %s", serial, want)
		}
		return err
	})
}

func TestJumpsLeaveUIDsOver(t *testing.T) {
	r := openTest(t)
	for range 30 {
		update(t, r, func(tx *Tx) error { return tx.JumpCounters(1000, 1, 100) })
	}
	update(t, r, func(tx *Tx) error {
		_, err := tx.AllocateUID(1, 100)
		return err
	})
}

func TestSeenNumbersRefuses(t *testing.T) {
	r := openTest(t)
	for _, numbers := range [][2]string{{"", ""}, {"DMN-TP-1-deadbeef", ""}, {"DMN-TP-1-deadbeef-00010", "A1"}, {"DMN-TP-1-deadbeef-00010", "A1-7"}} {
		err := r.Update(t.Context(), func(tx *Tx) error {
			return tx.SeenNumbers(worker.Serial(numbers[0]), worker.LedgerCode(numbers[1]))
		})
		if !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%q: %v", numbers, err)
		}
	}
}

func TestAppendPast(t *testing.T) {
	r := openTest(t)
	past := time.Date(2020, 1, 2, 3, 4, 5, 6e6, time.UTC)
	update(t, r, func(tx *Tx) error {
		for i := range 3 {
			if _, err := tx.AppendPast([]byte("x"), past.Add(time.Duration(-i)*time.Hour)); err != nil {
				return err
			}
		}
		return nil
	})
	update(t, r, func(tx *Tx) error {
		_, err := tx.Append([]byte("now"))
		return err
	})
	var at []time.Time
	for g, err := range r.Groups(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, g.At)
	}
	if len(at) != 2 || !at[0].Equal(past) || time.Since(at[1]) > time.Minute {
		t.Errorf("groups at %v", at)
	}
}

// A snapshot that is taken while many write is one moment of all of it.
func TestSnapshotWhileWriting(t *testing.T) {
	r := openTest(t)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for caller := range 8 {
		writers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%d/%d", caller, n)
				if err := r.Update(t.Context(), func(tx *Tx) error {
					index, err := tx.Append([]byte(key))
					return errors.Join(err, tx.SetMeta(key, strconv.FormatUint(index, 10)))
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		path := filepath.Join(t.TempDir(), "copy.db")
		before, err := r.Size(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Snapshot(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%v, %v", info, err)
		}
		copied := openAt(t, path)
		log := entries(t, copied)
		if uint64(len(log)) < before {
			t.Errorf("%d entries, %d were committed before", len(log), before)
		}
		for index, key := range log {
			if value, err := copied.Meta(t.Context(), key); err != nil || value != strconv.Itoa(index) {
				t.Fatalf("entry %d: meta %s is %q, %v", index, key, value, err)
			}
		}
		if err := r.Snapshot(t.Context(), path); err == nil {
			t.Error("a snapshot over a file that is there")
		}
	}
	close(stop)
	writers.Wait()
}
