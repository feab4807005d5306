package registry

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// What forging and routing ask must not become slower with every worker that
// ever lived: no full scan, no sorting, but where it is said.
func TestQueriesUseIndexes(t *testing.T) {
	mayScan := map[string]string{
		"AllWorkers":        "asks for all",
		"WorkersNotRetired": "walks an index of just those",
		"Clients":           "asks for all",
		"Descriptors":       "asks for all",
		"Types":             "asks for all",
		"Quarantined":       "asks for all",
		"AllDeliveries":     "asks for all",
		"CountShards":       "one row for a million workers",
		"LastGroup":         "takes the first row of the scan",

		"HeldUIDs": "once, at a start, and no more than a host has uids",

		"JumpShards":         "once, in a recovery",
		"JumpLedgerCounters": "once, in a recovery",
	}
	r := openTest(t)
	files, err := fs.Glob(os.DirFS("."), "queries/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	parameter := regexp.MustCompile(`\?|sqlc\.arg\(\w+\)`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, query := range strings.Split(string(text), "-- name: ")[1:] {
			name, _, _ := strings.Cut(query, " ")
			_, statement, _ := strings.Cut(query, "\n")
			plan := explain(t, r, parameter.ReplaceAllString(statement, "1"))
			slow := regexp.MustCompile(`SCAN (\w+)|TEMP B-TREE`).FindString(strings.ReplaceAll(plan, "SCAN CONSTANT ROW", ""))
			if _, may := mayScan[name]; (slow != "") != may {
				t.Errorf("%s: may scan: %t, but its plan is\n%s", name, may, plan)
			}
		}
	}
}

// explain is SQLite's plan for a statement.
func explain(t *testing.T, r *Registry, statement string) string {
	t.Helper()
	rows, err := r.pool.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(detail + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}
