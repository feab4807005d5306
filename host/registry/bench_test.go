package registry

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// entry is about as large as the entry of an admitted envelope.
var entry = []byte(strings.Repeat("x", 600))

// BenchmarkUpdate measures one durable change with its entry, by how many
// callers there are at a time.
func BenchmarkUpdate(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			r := openTest(b)
			var left, serial atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						key := fmt.Sprint("key ", serial.Add(1))
						if err := r.Update(b.Context(), func(tx *Tx) error {
							if _, err := tx.Append(entry); err != nil {
								return err
							}
							return tx.SetMeta(key, "value")
						}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
	}
}

// BenchmarkPlainInsert is the same two rows by SQLite alone, in a transaction
// each, with the same settings on the same kind of file.
func BenchmarkPlainInsert(b *testing.B) {
	path := filepath.Join(b.TempDir(), "registry.db")
	if err := openAt(b, path).Close(); err != nil {
		b.Fatal(err)
	}
	db, err := connections(path, writing)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	n := 0
	for b.Loop() {
		tx, err := db.BeginTx(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO record_groups VALUES (?, 1, 1, ?)", n, entry); err != nil {
			b.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO meta VALUES (?, 'value')", fmt.Sprint("key ", n)); err != nil {
			b.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "updates/s")
}

func BenchmarkGroups(b *testing.B) {
	r := openTest(b)
	for range 2000 {
		update(b, r, func(tx *Tx) error {
			for range 10 {
				if _, err := tx.Append(entry); err != nil {
					return err
				}
			}
			return nil
		})
	}
	n := 0
	for b.Loop() {
		for g, err := range r.Groups(b.Context(), 0) {
			if err != nil {
				b.Fatal(err)
			}
			n += len(g.Entries)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}
