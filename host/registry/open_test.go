package registry

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/modfile"

	"github.com/dals-host/dals-host/host/worker"
)

// made is a closed registry with some entries and workers in it.
func made(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registry.db")
	r := openAt(t, path)
	for range 50 {
		update(t, r, func(tx *Tx) error { return errors.Join(insert(tx, worker.Worker{}), append1("x", new(uint64))(tx)) })
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDamagedFileIsCorrupt(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, []byte) []byte{
		"no database": func(*testing.T, []byte) []byte { return []byte(strings.Repeat("not a database\n", 1000)) },
		"header":      func(_ *testing.T, b []byte) []byte { copy(b, "SQLite format 4"); return b },
		"pages":       func(_ *testing.T, b []byte) []byte { clear(b[2*4096:]); return b },
		"truncated":   func(_ *testing.T, b []byte) []byte { return b[:len(b)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			path := made(t)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(t, whole), 0o600); err != nil {
				t.Fatal(err)
			}
			open := func() (*Registry, error) { return Open(t.Context(), Config{Path: path}) }
			read := func() (*Registry, error) { return OpenReadOnly(t.Context(), path) }
			for _, open := range []func() (*Registry, error){open, read} {
				r, err := open()
				if err == nil {
					r.Close()
				}
				if !errors.Is(err, worker.ErrCorrupt) || !strings.Contains(worker.HintOf(err), "dals-host recover") {
					t.Errorf("%v, hint %q", err, worker.HintOf(err))
				}
			}
		})
	}
}

// A host that was killed while its registry was not yet one with a write-ahead
// log leaves a journal to be rolled back. Who only reads can do it too.
func TestOpenReadOnlyUndoesWhatIsHalfWritten(t *testing.T) {
	whole := schemaFile(t, versions(t)[len(versions(t))-1]) // a copy, which has no write-ahead log
	db, err := sql.Open("sqlite", "file:"+whole+"?_pragma=cache_size(1)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{
		"BEGIN IMMEDIATE", "UPDATE workers SET name = 'lost ' || name", "CREATE TABLE half (x)",
		"INSERT INTO half WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 500) SELECT hex(randomblob(500)) FROM r",
	} {
		if _, err := conn.ExecContext(t.Context(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	killed := filepath.Join(t.TempDir(), "registry.db") // what is there at this moment
	for _, end := range []string{"", "-journal"} {
		data, err := os.ReadFile(whole + end)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(killed+end, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reader, err := connections(killed, reading)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := check(t.Context(), reader); !isHalfWritten(err) {
		t.Fatalf("nothing is half written: %v", err)
	}
	r, err := OpenReadOnly(t.Context(), killed)
	if err != nil {
		t.Fatal(err)
	}
	workers, err := r.Workers(t.Context(), Filter{IncludeRetired: true})
	if diff := cmp.Diff(someFilling().workers, workers); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	someFilling().check(t, openAt(t, killed))
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := made(t)
	r := openAt(t, path)
	update(t, r, func(tx *Tx) error {
		_, err := tx.conn.ExecContext(tx.ctx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
		return err
	})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Path: path}); err == nil || worker.HintOf(err) == "" {
		t.Errorf("open: %v", err)
	}
	if _, err := OpenReadOnly(t.Context(), path); err == nil || worker.HintOf(err) == "" {
		t.Errorf("open to read: %v", err)
	}
}

func TestMissingFolder(t *testing.T) {
	_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "none", "registry.db")})
	if !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}

// SQLite opens URIs; a path must not be read as one.
func TestOddPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?mode=memory&x=%41#c;d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "registry.db")
	appendGroups(t, openAt(t, path), 1)
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestSettings(t *testing.T) {
	r := openTest(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "temp_store": "2"} {
		update(t, r, func(tx *Tx) error {
			var got string
			err := tx.conn.QueryRowContext(tx.ctx, "PRAGMA "+pragma).Scan(&got)
			if got != want {
				t.Errorf("%s is %s, want %s", pragma, got, want)
			}
			return err
		})
	}
	if _, err := r.pool.ExecContext(t.Context(), "DELETE FROM meta"); err == nil {
		t.Error("a reader may write")
	}
	var loose int
	err := r.pool.QueryRowContext(t.Context(), `SELECT count(*) FROM pragma_table_list
		WHERE schema = 'main' AND NOT strict AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'goose_%'`).Scan(&loose)
	if err != nil || loose != 0 {
		t.Errorf("%d tables are not STRICT, %v", loose, err)
	}
}

// modernc.org/sqlite works with the very libc that it was generated for; a newer
// one that another module asks for breaks it in ways that no compiler sees.
func TestLibcIsTheOneOfSQLite(t *testing.T) {
	ours := requires(t, filepath.Join("..", "..", "go.mod"))
	cache, err := exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatalf("ask go for its module cache: %v", err)
	}
	sqlites := requires(t, filepath.Join(strings.TrimSpace(string(cache)), "modernc.org", "sqlite@"+ours["modernc.org/sqlite"], "go.mod"))
	const libc = "modernc.org/libc"
	if ours[libc] == "" || ours[libc] != sqlites[libc] {
		t.Errorf("go.mod has %s %s, modernc.org/sqlite %s wants %s", libc, ours[libc], ours["modernc.org/sqlite"], sqlites[libc])
	}
}

func requires(t *testing.T, path string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := modfile.Parse(path, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, r := range file.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	return versions
}
