package registry

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// BenchmarkAllocation measures what a forge asks of the registry before it makes
// anything, in registries with ever more workers that retired: look the name and
// a port up, then serial, ledger code, uid and row in one durable commit. One
// iteration is a batch in each registry, in turns, so that all see the same
// machine; ratio is the median of a batch's time over that of the empty
// registry in the same turn.
func BenchmarkAllocation(b *testing.B) {
	const batch = 200
	sizes := []int{0, 1000, 100_000, 1_000_000}
	registries := make([]*Registry, len(sizes))
	for i, n := range sizes {
		registries[i] = retiredRegistry(b, n)
		allocate(b, registries[i], batch) // what is asked for the first time
	}
	took := make([][]float64, len(sizes))
	for turn := 0; b.Loop(); turn++ {
		for k := range sizes {
			i := (turn + k) % len(sizes)
			took[i] = append(took[i], allocate(b, registries[i], batch).Seconds())
		}
	}
	for i, n := range sizes {
		ratios := make([]float64, len(took[i]))
		for turn := range ratios {
			ratios[turn] = took[i][turn] / took[0][turn]
		}
		b.ReportMetric(middle(took[i])/batch*1e6, fmt.Sprintf("us/alloc@%d", n))
		b.ReportMetric(middle(ratios), fmt.Sprintf("ratio@%d", n))
		if len(ratios) >= enoughTurns && middle(ratios) > mostSlower {
			b.Errorf("with %d retired workers it takes %.2f of the empty registry's time, at most %.1f", n, middle(ratios), mostSlower)
		}
	}
	b.ReportMetric(0, "ns/op")
}

const (
	mostSlower  = 1.2 // the aim: what retired workers may cost those that come
	enoughTurns = 5   // before that files are still being read for the first time
)

func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// allocate allocates for n workers, says how long it took, and retires them.
func allocate(b *testing.B, r *Registry, n int) time.Duration {
	b.Helper()
	made := make([]worker.Worker, n)
	began := time.Now()
	for i := range n {
		w := &made[i]
		*w = benchWorker(fmt.Sprintf("new-%d", i))
		w.Port = 20_000 + i
		if _, err := r.WorkerByName(b.Context(), w.Name); err != nil && !errors.Is(err, worker.ErrNotFound) {
			b.Fatal(err)
		}
		if taken, err := r.PortTaken(b.Context(), w.Port); err != nil || taken {
			b.Fatal(taken, err)
		}
		update(b, r, func(tx *Tx) (err error) {
			if w.Serial, err = tx.AllocateSerial(w.Model); err != nil {
				return err
			}
			if w.LedgerCode, err = tx.AllocateLedgerCode(w.ClassCode); err != nil {
				return err
			}
			if w.UID, err = tx.AllocateUID(1<<30, 1<<30+1<<14); err != nil {
				return err
			}
			return tx.InsertWorker(*w)
		})
	}
	took := time.Since(began)
	update(b, r, func(tx *Tx) error {
		for _, w := range made {
			if err := tx.SetState(w.Serial, worker.StateRetired, ""); err != nil {
				return err
			}
		}
		return nil
	})
	return took
}

// workerColumns are those of the first schema; later ones have defaults.
const workerColumns = `serial, name, type, type_version, plugin_digest, class_code, model_number, ledger_code, port, uid, own_uid,
	state, state_reason, launcher, public_key, glyph, manifest_sha256, image_digest, config, request_sha256, restarts, created_at, retired_at`

// retiredRegistry is a registry in which n workers of a hundred classes were
// forged and have retired, in rows as large as real ones.
func retiredRegistry(b *testing.B, n int) *Registry {
	b.Helper()
	path := filepath.Join(b.TempDir(), "registry.db")
	r := openAt(b, path)
	update(b, r, func(tx *Tx) error {
		_, err := tx.conn.ExecContext(tx.ctx, `
			WITH RECURSIVE n(i) AS (SELECT 0 WHERE ?1 > 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
			INSERT INTO workers (`+workerColumns+`) SELECT
				printf('DMN-TP-1-%08x-%05x', (i / 1048576 + 1) * 123456789 % 4294967296, i % 1048576), printf('worker-%d', i % 50000),
				'template', '1.0.0', lower(hex(zeroblob(32))), printf('A%d', i % 100 + 1), 'DMN-TP-1',
				printf('A%d-%06d', i % 100 + 1, i / 100 + 1), 20000 + i % 10000, 1073741824 + i % 4000, 1, 'retired', '', 'containerd',
				randomblob(32), printf('%.*c', 219, '+'), lower(hex(randomblob(32))), 'sha256:' || lower(hex(zeroblob(32))),
				CAST('{"greeting":"hello"}' AS BLOB), lower(hex(randomblob(32))), 0, 1700000000000 + i * 1000, 1700000500000 + i * 1000 FROM n`, n)
		if err != nil {
			return err
		}
		_, err = tx.conn.ExecContext(tx.ctx, `
			INSERT INTO ledger_counters SELECT class_code, count(*) FROM workers GROUP BY class_code`)
		if err != nil {
			return err
		}
		_, err = tx.conn.ExecContext(tx.ctx, `
			INSERT INTO uids SELECT DISTINCT uid, 1700000000000 FROM workers`)
		return err
	})
	if err := r.Close(); err != nil { // the write-ahead log goes into the file
		b.Fatal(err)
	}
	began := time.Now()
	r = openAt(b, path)
	b.Logf("opened with %d retired workers in %s", n, time.Since(began).Round(time.Millisecond))
	return r
}
