package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/worker"
)

// A schema that was released has a registry file in testdata/schemas, made by
// the dals-host of its time, with something in every table. To make the one of a
// new schema, once, with its first commit:
//
//	go test ./host/registry -run TestMigrations -make-schema
var makeSchema = flag.Bool("make-schema", false, "write testdata/schemas for the newest schema")

const schemas = "testdata/schemas"

// filling is what is in each of these files.
type filling struct {
	workers     []worker.Worker
	clients     []Client
	descriptors []Descriptor
	types       []Type
	quarantines []Quarantine
	deliveries  []Delivery
	entries     []string
}

func someFilling() filling {
	at := time.Date(2026, 11, 22, 16, 30, 5, 123e6, time.UTC)
	nora, otto, dora := whole("DMN-TP-1-deadbeef-00000"), whole("DMN-TP-1-deadbeef-00001"), whole("DMN-LG-2-deadbeef-00002")
	nora.RetiredAt = time.Time{}
	otto.Name, otto.LedgerCode, otto.State = "Otto", "A1-000002", worker.StateRetired
	dora.Name, dora.LedgerCode, dora.ClassCode, dora.Port, dora.UID = "dora", "300.100.000-000001", "300.100.000", 20002, 70001
	dora.State, dora.RetiredAt = worker.StateFailed, time.Time{}
	return filling{
		workers: []worker.Worker{dora, nora, otto},
		clients: []Client{
			{ID: "key:a", Name: "operator", PublicKey: []byte{1}, CreatedAt: at},
			{ID: "key:b", Name: "ci", PublicKey: []byte{2}, CreatedAt: at.Add(time.Second), RevokedAt: at.Add(time.Hour)},
		},
		descriptors: []Descriptor{{Digest: "aa", Type: "template", Version: "1.2.3", Descriptor: []byte{1, 2}, ProbedAt: at}},
		types:       []Type{{Name: "template", Version: "1.2.3", Digest: "aa", OwnerUID: 17, RegisteredAt: at}},
		quarantines: []Quarantine{{Digest: "bb", Reason: "no ELF", Fix: "build it", At: at}},
		deliveries: []Delivery{{
			EnvelopeID: "0192", Sender: "key:a", Serial: nora.Serial, Attempt: 1, Header: []byte{3}, AdmittedAt: at, Deadline: at.Add(time.Minute), LogIndex: 1,
		}},
		entries: []string{"first", "second", "third"},
	}
}

// of is what of it a schema had room for.
func (f filling) of(version string) filling {
	for i := range f.workers {
		if version < "00002" {
			f.workers[i].Grants = nil
		}
		if version < "00003" {
			f.workers[i].Limits = worker.Limits{}
		}
		if version < "00004" {
			f.workers[i].RestartTries = 0
		}
	}
	return f
}

// fill puts it all into a new registry.
func (f filling) fill(tx *Tx) error {
	errs := []error{tx.TakeUID(70000), tx.TakeUID(70001), tx.SetMeta("operator_enrolled", "key:a"), tx.QuarantinePort(20099, f.types[0].RegisteredAt)}
	for _, w := range f.workers {
		errs = append(errs, tx.SeenNumbers(w.Serial, w.LedgerCode), tx.InsertWorker(w))
	}
	for _, c := range f.clients {
		errs = append(errs, tx.AddClient(c))
		if !c.RevokedAt.IsZero() {
			_, err := tx.RevokeClient(c.Name, c.RevokedAt)
			errs = append(errs, err)
		}
	}
	for _, d := range f.descriptors {
		errs = append(errs, tx.PutDescriptor(d))
	}
	for _, t := range f.types {
		errs = append(errs, tx.PutType(t))
	}
	for _, q := range f.quarantines {
		errs = append(errs, tx.PutQuarantine(q))
	}
	for _, d := range f.deliveries {
		errs = append(errs, tx.PutDelivery(d))
	}
	for _, e := range f.entries {
		_, err := tx.Append([]byte(e))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// check says whether it is all in r, and that its numbers are not given again.
func (f filling) check(t *testing.T, r *Registry) {
	t.Helper()
	var got filling
	var errs [6]error
	got.workers, errs[0] = r.Workers(t.Context(), Filter{IncludeRetired: true})
	got.clients, errs[1] = r.Clients(t.Context())
	got.descriptors, errs[2] = r.Descriptors(t.Context())
	got.types, errs[3] = r.Types(t.Context())
	got.quarantines, errs[4] = r.Quarantines(t.Context())
	got.deliveries, errs[5] = r.Deliveries(t.Context(), "")
	got.entries = entries(t, r)
	if diff := cmp.Diff(f, got, cmp.AllowUnexported(filling{})); diff != "" || errors.Join(errs[:]...) != nil {
		t.Errorf("%v (-want +got):\n%s", errors.Join(errs[:]...), diff)
	}
	if id, err := r.Meta(t.Context(), "operator_enrolled"); id != "key:a" {
		t.Errorf("meta %q, %v", id, err)
	}
	update(t, r, func(tx *Tx) error {
		serial, err := tx.AllocateSerial("DMN-TP-1")
		code, err2 := tx.AllocateLedgerCode("A1")
		uid, err3 := tx.AllocateUID(70000, 71000)
		if serial != "DMN-TP-1-deadbeef-00003" || code != "A1-000003" || uid != 70002 {
			t.Errorf("next are %s, %s and %d", serial, code, uid)
		}
		return errors.Join(err, err2, err3)
	})
}

// versions are the schemas that there were.
func versions(t *testing.T) []string {
	t.Helper()
	files, err := fs.Glob(os.DirFS("migrations"), "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	var list []string
	for _, file := range files {
		number, _, _ := strings.Cut(file, "_")
		list = append(list, number)
	}
	return list
}

// schemaFile is a copy of the registry file of a schema.
func schemaFile(t *testing.T, version string) string {
	t.Helper()
	packed, err := os.ReadFile(filepath.Join(schemas, version+".db.gz"))
	if err != nil {
		t.Fatalf("no registry file of schema %s (make one: see makeSchema): %v", version, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMigrations(t *testing.T) {
	all := versions(t)
	if *makeSchema {
		writeSchemaFile(t, all[len(all)-1])
	}
	for _, version := range all {
		t.Run(version, func(t *testing.T) {
			path := schemaFile(t, version)
			if have := schemaOf(t, path); fmt.Sprintf("%05d", have) != version {
				t.Fatalf("the file is of schema %d", have)
			}
			r := openAt(t, path)
			someFilling().of(version).check(t, r)
		})
	}
}

// writeSchemaFile makes the file of the newest schema. One that is there was
// made by its own time, and stays.
func writeSchemaFile(t *testing.T, version string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registry.db")
	r, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	update(t, r, someFilling().fill)
	small := filepath.Join(t.TempDir(), "small.db")
	if err := errors.Join(r.Snapshot(t.Context(), small), r.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(schemas, version+".db.gz"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, err = z.Write(data)
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// schemaOf is the version of a file's schema.
func schemaOf(t *testing.T, path string) (version int64) {
	t.Helper()
	// As OpenReadOnly does; that itself refuses other schemas than the newest.
	if r, err := OpenReadOnly(t.Context(), path); err == nil {
		r.Close()
	} else if !errors.Is(err, worker.ErrConflict) {
		t.Fatal(err)
	}
	db, err := connections(path, reading)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), "SELECT max(version_id) FROM goose_db_version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}

// slowRows is how many rows the slow migration writes.
const slowRows = 60_000

// slowly are the schemas with one more, which takes its time.
func slowly() (fs.FS, error) {
	files, err := migrations()
	if err != nil {
		return nil, err
	}
	all := fstest.MapFS{"99999_slow.sql": {Data: fmt.Appendf(nil, `-- +goose Up
CREATE TABLE slow (n INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
INSERT INTO slow WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < %d) SELECT n, hex(randomblob(50)) FROM r;
ALTER TABLE meta ADD COLUMN slow TEXT NOT NULL DEFAULT 'yes';
CREATE INDEX slow_text ON slow (text);
`, slowRows)}}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		all[name] = &fstest.MapFile{Data: text}
	}
	return all, nil
}

// migrateSlowly is a child that is killed while it migrates.
func migrateSlowly(path string) error {
	files, err := slowly()
	if err != nil {
		return err
	}
	db, err := connections(path, writing)
	if err != nil {
		return err
	}
	defer db.Close()
	return migrate(context.Background(), db, files)
}

// A host that is killed while it migrates leaves the old schema or the new one,
// and all data either way.
func TestKilledMigration(t *testing.T) {
	all := versions(t)
	newest := all[len(all)-1]
	outcomes := map[int64]int{}
	for round := range 16 {
		path := schemaFile(t, newest)
		cmd := child(t, "migrate", path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said error
		ended := make(chan struct{})
		go func() { defer close(ended); said = cmd.Wait() }()
		if round == 15 { // what it would have come to
			if <-ended; said != nil {
				t.Fatal(said)
			}
		} else {
			select {
			case <-ended:
			case <-time.After(time.Duration(40*(round+1)) * time.Millisecond): // the moment is the point
				_ = cmd.Process.Kill()
				<-ended
			}
		}
		version := schemaOf(t, path)
		outcomes[version]++
		checkKilled(t, path, version == 99999)
	}
	t.Logf("schemas after the kills: %v", outcomes)
	if len(outcomes) != 2 {
		t.Errorf("no kill left the old schema, or none the new: %v", outcomes)
	}
}

func checkKilled(t *testing.T, path string, migrated bool) {
	t.Helper()
	if !migrated {
		r, err := Open(t.Context(), Config{Path: path}) // as the next start would
		if err != nil {
			t.Fatal(err)
		}
		someFilling().check(t, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	if _, err := Open(t.Context(), Config{Path: path}); !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "schema is of version 99999") {
		t.Errorf("a newer schema: %v", err)
	}
	db, err := connections(path, reading)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var rows, meta int
	var slow string
	for query, to := range map[string]any{
		"SELECT count(*) FROM slow": &rows, "SELECT count(*) FROM meta": &meta, "SELECT min(slow) FROM meta": &slow,
	} {
		if err := db.QueryRowContext(t.Context(), query).Scan(to); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	if err := check(t.Context(), db); err != nil || rows != slowRows || meta == 0 || slow != "yes" {
		t.Errorf("%d rows, %d in meta (%q), %v", rows, meta, slow, err)
	}
}
