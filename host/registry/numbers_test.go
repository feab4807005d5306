package registry

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

func TestSerials(t *testing.T) {
	r := openTest(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[worker.Serial]bool{}
	for range 8 {
		wg.Go(func() {
			for range 25 {
				var serial worker.Serial
				if err := r.Update(t.Context(), func(tx *Tx) (err error) {
					serial, err = tx.AllocateSerial("DMN-TP-1")
					return err
				}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				if _, err := worker.ParseSerial(string(serial)); err != nil || seen[serial] {
					t.Errorf("serial %s: given before: %t, %v", serial, seen[serial], err)
				}
				seen[serial] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	shards := map[string]bool{}
	for serial := range seen {
		shards[strings.Split(string(serial), "-")[3]] = true
	}
	if len(shards) != 1 {
		t.Errorf("%d shards for %d serials", len(shards), len(seen))
	}
}

func TestFullShardIsFollowedByAnother(t *testing.T) {
	r := openTest(t)
	var serials [4]worker.Serial
	allocate := func(i int) {
		update(t, r, func(tx *Tx) (err error) {
			serials[i], err = tx.AllocateSerial("DMN-TP-1")
			return err
		})
	}
	allocate(0)
	update(t, r, func(tx *Tx) error {
		_, err := tx.conn.ExecContext(tx.ctx, "UPDATE shards SET used = ?", worker.SerialsPerShard-1)
		return err
	})
	for i := range 3 {
		allocate(i + 1)
	}
	if first, last := string(serials[0]), string(serials[1]); last != first[:len(first)-5]+"fffff" {
		t.Errorf("the last serial of the shard of %s is %s", first, last)
	}
	if a, b := string(serials[2]), string(serials[3]); a[9:17] == string(serials[1])[9:17] || a[9:17] != b[9:17] ||
		!strings.HasSuffix(a, "-00000") || !strings.HasSuffix(b, "-00001") {
		t.Errorf("after the shard of %s come %s and %s", serials[1], a, b)
	}
}

// TestShardRunsOver: many callers at the end of a shard, over a restart in the
// middle. Each gets a serial of its own, and one more shard is enough.
func TestShardRunsOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	r := openAt(t, path)
	const before = 60
	update(t, r, func(tx *Tx) error {
		_, err := tx.conn.ExecContext(tx.ctx, "UPDATE shards SET used = ?", worker.SerialsPerShard-before)
		return err
	})
	var mu sync.Mutex
	seen, shards := map[worker.Serial]bool{}, map[string]int{}
	round := func(each int) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range each {
					var serial worker.Serial
					if err := r.Update(t.Context(), func(tx *Tx) (err error) {
						serial, err = tx.AllocateSerial("DMN-TP-1")
						return err
					}); err != nil {
						t.Error(err)
					}
					mu.Lock()
					if _, err := worker.ParseSerial(string(serial)); err != nil || seen[serial] {
						t.Errorf("serial %s: given before: %t, %v", serial, seen[serial], err)
					}
					seen[serial] = true
					shards[strings.Split(string(serial), "-")[3]]++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	round(5)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = openAt(t, path)
	round(10)
	if len(seen) != 8*15 || len(shards) != 2 || !slices.Contains(slices.Collect(maps.Values(shards)), before) {
		t.Errorf("%d serials in shards %v", len(seen), shards)
	}
}

func TestLedgerCodesCountByClass(t *testing.T) {
	r := openTest(t)
	var got []worker.LedgerCode
	for _, class := range []worker.ClassCode{"A1", "300.100.000", "A1", "A1"} {
		update(t, r, func(tx *Tx) error {
			code, err := tx.AllocateLedgerCode(class)
			got = append(got, code)
			return err
		})
	}
	if got[0] != "A1-000001" || got[1] != "300.100.000-000001" || got[2] != "A1-000002" || got[3] != "A1-000003" {
		t.Error(got)
	}
}

// An allocation that is rolled back leaves its numbers free: nobody saw them.
func TestRolledBackAllocation(t *testing.T) {
	r := openTest(t)
	for range 2 {
		_ = r.Update(t.Context(), func(tx *Tx) error {
			code, _ := tx.AllocateLedgerCode("A1")
			if uid, err := tx.AllocateUID(70000, 70001); code != "A1-000001" || uid != 70000 || err != nil {
				t.Errorf("%s, %d, %v", code, uid, err)
			}
			return errors.New("no")
		})
	}
}

func TestUIDs(t *testing.T) {
	r := openTest(t)
	const low, high = 70000, 70003
	serials := map[int]worker.Serial{}
	take := func() (uid int, err error) {
		err = r.Update(t.Context(), func(tx *Tx) error {
			serial, err := tx.AllocateSerial("DMN-TP-1")
			if err != nil {
				return err
			}
			if uid, err = tx.AllocateUID(low, high); err != nil {
				return err
			}
			serials[uid] = serial
			return insert(tx, worker.Worker{Serial: serial, UID: uid})
		})
		return uid, err
	}
	want := func(uid int) {
		t.Helper()
		if got, err := take(); got != uid || err != nil {
			t.Errorf("uid %d, want %d, %v", got, uid, err)
		}
	}
	for uid := low; uid <= high; uid++ {
		want(uid)
	}
	if _, err := take(); !errors.Is(err, worker.ErrExhausted) {
		t.Errorf("%v, want exhausted", err)
	}
	update(t, r, func(tx *Tx) error {
		return errors.Join(
			tx.DeleteWorker(serials[70002]),
			tx.SetState(serials[70001], worker.StateRetired, ""),
			tx.SetState(serials[70003], worker.StateFailed, ""), // keeps its uid
		)
	})
	want(70001)
	want(70002)
	if _, err := take(); !errors.Is(err, worker.ErrExhausted) {
		t.Errorf("%v, want exhausted", err)
	}
}

// Workers that share the uid of a host that is not root never give it back.
func TestSharedUIDIsNotAllocated(t *testing.T) {
	r := openTest(t)
	update(t, r, func(tx *Tx) error {
		serial, err := tx.AllocateSerial("DMN-TP-1")
		return errors.Join(err, insert(tx, worker.Worker{Serial: serial, UID: 70000}), tx.DeleteWorker(serial))
	})
	update(t, r, func(tx *Tx) error {
		for want := 70000; want < 70003; want++ {
			if uid, err := tx.AllocateUID(70000, 70009); uid != want || err != nil {
				t.Errorf("uid %d, want %d, %v", uid, want, err)
			}
		}
		return nil
	})
}

// A clock that was set back keeps a port out for longer, never for less; one that
// was set forth gives it back early, and then it is the socket that tells whether
// it is free.
func TestQuarantineByAClockAnHourOff(t *testing.T) {
	r := openAt(t, filepath.Join(t.TempDir(), "registry.db"))
	const rest = 10 * time.Minute
	update(t, r, func(tx *Tx) error {
		return errors.Join(
			tx.QuarantinePort(20001, time.Now().Add(rest)),
			tx.QuarantinePort(20002, time.Now().Add(time.Hour+rest)),
			tx.QuarantinePort(20003, time.Now().Add(-time.Hour+rest)),
		)
	})
	for port, want := range map[int]bool{20001: true, 20002: true, 20003: false} {
		if taken, err := r.PortTaken(t.Context(), port); taken != want || err != nil {
			t.Errorf("port %d is taken: %t, want %t, %v", port, taken, want, err)
		}
	}
}

func TestPorts(t *testing.T) {
	r := openTest(t)
	update(t, r, func(tx *Tx) error {
		serial, err := tx.AllocateSerial("DMN-TP-1")
		return errors.Join(err,
			insert(tx, worker.Worker{Serial: serial, Port: 20000}),
			insert(tx, worker.Worker{}), // without a port
			tx.QuarantinePort(20001, time.Now().Add(time.Hour)),
			tx.QuarantinePort(20002, time.Now()),
			tx.QuarantinePort(20003, time.Now().Add(time.Hour)),
			tx.QuarantinePort(20003, time.Now()),
		)
	})
	for port, want := range map[int]bool{0: false, 20000: true, 20001: true, 20002: false, 20003: false, 20004: false} {
		if got, err := r.PortTaken(t.Context(), port); got != want || err != nil {
			t.Errorf("port %d is taken: %t, %v", port, got, err)
		}
	}
	update(t, r, func(tx *Tx) error { return tx.QuarantinePort(20004, time.Now().Add(time.Hour)) })
	var rows int
	if err := r.pool.QueryRowContext(t.Context(), "SELECT count(*) FROM port_quarantine").Scan(&rows); err != nil || rows != 2 {
		t.Errorf("%d ports in quarantine, %v: those that are over are kept", rows, err)
	}
}

// TestHeldUIDs: a uid that is held is nobody's and is not given again, until it is
// taken or freed.
func TestHeldUIDs(t *testing.T) {
	r := openTest(t)
	const low, high = 70000, 70009
	allocate := func(want int) {
		t.Helper()
		update(t, r, func(tx *Tx) error {
			uid, err := tx.AllocateUID(low, high)
			if uid != want {
				t.Errorf("uid %d, want %d", uid, want)
			}
			return err
		})
	}
	expect := func(want ...int) {
		t.Helper()
		if held, err := r.HeldUIDs(t.Context()); err != nil || !slices.Equal(held, want) {
			t.Errorf("held: %v, %v; want %v", held, err, want)
		}
	}
	allocate(low)
	allocate(low + 1)
	update(t, r, func(tx *Tx) error { return errors.Join(tx.HoldUID(low), tx.HoldUID(low+1)) })
	expect(low, low+1)
	allocate(low + 2)
	update(t, r, func(tx *Tx) error { return tx.TakeUID(low + 1) })
	expect(low)
	update(t, r, func(tx *Tx) error { return errors.Join(tx.FreeHeldUID(low), tx.FreeHeldUID(low+1)) })
	expect()
	allocate(low)
	allocate(low + 3) // low+1 is somebody's own
}
