package registry

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// leastOfPlain is the aim: committed steps against those of plain SQLite.
const leastOfPlain = 0.5

// BenchmarkForgeSteps measures the two durable steps of a forge, the allocation
// and the record, against plain SQLite that writes the same rows to the same
// file with a commit each, and has its numbers for nothing. One iteration is a
// batch of both, in turns; ratio is the median of the registry's committed steps
// a second over plain SQLite's in the same turn.
func BenchmarkForgeSteps(b *testing.B) {
	const batch = 200
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "registry.db")
			r, p := openAt(b, path), openPlain(b, path)
			var names atomic.Int64
			ours := func() { forgeSteps(b, r, fmt.Sprintf("w%d", names.Add(1))) }
			crowd(callers, batch, ours)
			for range batch {
				p.forgeSteps()
			}
			var registry, plain, ratio []float64
			for turn := 0; b.Loop(); turn++ {
				var a, z time.Duration
				for i := range 2 {
					began := time.Now()
					if (turn+i)%2 == 0 {
						crowd(callers, batch, ours)
						a = time.Since(began)
						continue
					}
					for range batch {
						p.forgeSteps()
					}
					z = time.Since(began)
				}
				registry, plain = append(registry, 2*batch/a.Seconds()), append(plain, 2*batch/z.Seconds())
				ratio = append(ratio, z.Seconds()/a.Seconds())
			}
			b.ReportMetric(middle(registry), "steps/s")
			b.ReportMetric(middle(plain), "plain-steps/s")
			b.ReportMetric(middle(ratio), "ratio")
			if middle(ratio) < leastOfPlain {
				b.Errorf("%.2f of plain SQLite, at least %.1f", middle(ratio), leastOfPlain)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// crowd runs n calls, so many callers at a time.
func crowd(callers, n int, call func()) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				call()
			}
		})
	}
	wg.Wait()
}

// forgeSteps makes one worker, as far as the registry goes, and gives its uid
// back.
func forgeSteps(b *testing.B, r *Registry, name string) {
	w := benchWorker(name)
	if err := r.Update(b.Context(), func(tx *Tx) (err error) {
		if w.Serial, err = tx.AllocateSerial(w.Model); err != nil {
			return err
		}
		if w.LedgerCode, err = tx.AllocateLedgerCode(w.ClassCode); err != nil {
			return err
		}
		if w.UID, err = tx.AllocateUID(1<<30, 1<<30+1<<14); err != nil {
			return err
		}
		return tx.InsertWorker(w)
	}); err != nil {
		b.Error(err)
		return
	}
	w.State = worker.StateRetired // what is left of it is out of the way
	if err := r.Update(b.Context(), func(tx *Tx) error {
		if err := tx.UpdateWorker(w); err != nil {
			return err
		}
		_, err := tx.Append(entry)
		return err
	}); err != nil {
		b.Error(err)
	}
}

func benchWorker(name string) worker.Worker {
	return worker.Worker{
		Name: name, Type: "template", TypeVersion: "1.0.0", ClassCode: "A1", Model: "DMN-TP-1", State: worker.StateForging,
		Launcher: "process", CreatedAt: time.Now(), Config: []byte(`{"greeting":"hello"}`), PublicKey: make([]byte, 32),
	}
}

// plain is SQLite with the registry's settings and statements for three rows.
type plain struct {
	b                                     *testing.B
	begin, insert, update, record, commit *sql.Stmt
	n                                     int64
}

func openPlain(b *testing.B, path string) *plain {
	b.Helper()
	db, err := connections(path, writing)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1) // a transaction is begun and committed by hand
	p := &plain{b: b}
	for text, stmt := range map[string]**sql.Stmt{
		"BEGIN IMMEDIATE": &p.begin,
		"COMMIT":          &p.commit,
		`INSERT INTO workers (` + workerColumns + `) VALUES (?, ?, 'template', '1.0.0', '', 'A1', 'DMN-TP-1', ?, 0, ?, 0, 'forging', '', 'process',
			zeroblob(32), '', '', '', CAST('{"greeting":"hello"}' AS BLOB), '', 0, ?, 0)`: &p.insert,
		`UPDATE workers SET state = 'retired', public_key = zeroblob(32), manifest_sha256 = '', retired_at = ? WHERE serial = ?`: &p.update,
		`INSERT INTO record_groups VALUES (?, 1, 1, ?)`: &p.record,
	} {
		//nolint:sqlclosecheck // closed with the database
		if *stmt, err = db.Prepare(text); err != nil {
			b.Fatal(err)
		}
	}
	return p
}

func (p *plain) forgeSteps() {
	p.n++
	serial, now := fmt.Sprintf("plain-%09d", p.n), time.Now().UnixMilli()
	p.do(p.begin)
	p.do(p.insert, serial, serial, serial, p.n, now)
	p.do(p.commit)
	p.do(p.begin)
	p.do(p.update, now, serial)
	p.do(p.record, 1<<40+p.n, entry) // far from the registry's own
	p.do(p.commit)
}

func (p *plain) do(stmt *sql.Stmt, args ...any) {
	if _, err := stmt.ExecContext(p.b.Context(), args...); err != nil {
		p.b.Fatal(err)
	}
}
