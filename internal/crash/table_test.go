package crash

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tableVar names a file that the table is written to.
const tableVar = "DALS_CRASH_TABLE"

// table is what was tried.
type table struct {
	mu   sync.Mutex
	rows []*row
}

type row struct {
	operation, launcher string
	tried, failed       int
	took                time.Duration
}

func (t *table) row(operation, launcher string) *row {
	for _, r := range t.rows {
		if r.operation == operation && r.launcher == launcher {
			return r
		}
	}
	r := &row{operation: operation, launcher: launcher}
	t.rows = append(t.rows, r)
	return r
}

func (t *table) add(operation, launcher string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.row(operation, launcher)
	r.tried++
	if err != nil {
		r.failed++
	}
}

func (t *table) took(operation, launcher string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.row(operation, launcher).took += d
}

// print writes the table to the log of the test, and where tableVar says.
func (t *table) print(test *testing.T) {
	var text strings.Builder
	all := row{operation: "all"}
	slices.SortFunc(t.rows, func(a, b *row) int {
		return cmp.Or(cmp.Compare(a.launcher, b.launcher), cmp.Compare(a.operation, b.operation))
	})
	fmt.Fprintf(&text, "%-28s %-10s %6s %8s %8s\n", "killed during", "launcher", "points", "failures", "took")
	for _, r := range append(t.rows, &all) {
		fmt.Fprintf(&text, "%-28s %-10s %6d %8d %8s\n", r.operation, r.launcher, r.tried, r.failed, r.took.Round(100*time.Millisecond))
		all.tried, all.failed, all.took = all.tried+r.tried, all.failed+r.failed, all.took+r.took
	}
	test.Logf("crash matrix:\n%s", &text)
	if name := os.Getenv(tableVar); name != "" {
		if err := os.WriteFile(name, []byte(text.String()), 0o600); err != nil {
			test.Error(err)
		}
	}
}
