package registry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/worker"
)

// appendGroups commits groups of so many entries each; an entry is its index.
func appendGroups(t *testing.T, r *Registry, counts ...int) {
	t.Helper()
	for _, count := range counts {
		update(t, r, func(tx *Tx) error {
			for range count {
				if _, err := tx.Append(fmt.Append(nil, tx.batch.next())); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// firsts collects where groups begin, with their sizes.
func firsts(t *testing.T, groups func(func(Group, error) bool)) []string {
	t.Helper()
	var list []string
	for g, err := range groups {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%d+%d", g.First, len(g.Entries)))
	}
	return list
}

func TestGroups(t *testing.T) {
	r := openTest(t)
	if got := firsts(t, r.Groups(t.Context(), 0)); got != nil {
		t.Errorf("empty log has groups %q", got)
	}
	appendGroups(t, r, 1, 3, 2)
	for from, want := range map[uint64][]string{
		0: {"0+1", "1+3", "4+2"}, 1: {"1+3", "4+2"}, 3: {"1+3", "4+2"}, 5: {"4+2"}, 6: nil, 1 << 63: nil,
	} {
		if diff := cmp.Diff(want, firsts(t, r.Groups(t.Context(), from))); diff != "" {
			t.Errorf("groups from %d (-want +got):\n%s", from, diff)
		}
	}
	for i, entry := range entries(t, r) {
		if entry != fmt.Sprint(i) {
			t.Errorf("entry %d is %q", i, entry)
		}
	}
	for g, err := range r.Groups(t.Context(), 0) { // a reader may stop, and write meanwhile
		if err != nil {
			t.Fatal(err)
		}
		if g.First == 0 {
			appendGroups(t, r, 1)
			continue
		}
		break
	}
	if size, err := r.Size(t.Context()); size != 7 || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
}

func TestGroupsSince(t *testing.T) {
	r := openTest(t)
	start := time.Now().Add(-time.Second)
	appendGroups(t, r, 1, 1, 1, 1)
	// As if committed a minute apart, but for the third: the clock was set back.
	minute := func(n int) time.Time { return start.Add(time.Duration(n) * time.Minute) }
	for first, at := range []int{0, 10, 3, 11} {
		update(t, r, func(tx *Tx) error {
			_, err := tx.conn.ExecContext(tx.ctx, "UPDATE record_groups SET at = ? WHERE first_index = ?", millis(minute(at)), first)
			return err
		})
	}
	for since, want := range map[int][]string{
		0: {"0+1", "1+1", "2+1", "3+1"}, 1: {"1+1", "2+1", "3+1"}, 4: {"1+1", "3+1"}, 11: {"3+1"}, 12: nil,
	} {
		if diff := cmp.Diff(want, firsts(t, r.GroupsSince(t.Context(), minute(since)))); diff != "" {
			t.Errorf("groups since minute %d (-want +got):\n%s", since, diff)
		}
	}
	for g, err := range r.GroupsSince(t.Context(), minute(11)) {
		if err != nil || !g.At.Equal(minute(11).Truncate(time.Millisecond)) || g.At.Location() != time.UTC {
			t.Errorf("group of %s, %v", g.At, err)
		}
	}
}

func TestEntryBounds(t *testing.T) {
	r := openTest(t)
	largest := bytes.Repeat([]byte{7}, MaxEntry)
	update(t, r, func(tx *Tx) error {
		for _, bad := range [][]byte{nil, {}, append(largest, 7)} {
			if _, err := tx.Append(bad); !errors.Is(err, worker.ErrInvalid) {
				t.Errorf("entry of %d bytes: %v", len(bad), err)
			}
		}
		_, err := tx.Append(largest)
		return err
	})
	if log := entries(t, r); len(log) != 1 || log[0] != string(largest) {
		t.Errorf("log of %d", len(log))
	}
}

func TestDamagedLogIsCorrupt(t *testing.T) {
	for name, damage := range map[string]string{
		"first group is gone": "DELETE FROM record_groups WHERE first_index = 0",
		"group is gone":       "DELETE FROM record_groups WHERE first_index = 1",
		"entry is gone":       "UPDATE record_groups SET blob = substr(blob, 3) WHERE first_index = 1",
		"entry is cut":        "UPDATE record_groups SET blob = substr(blob, 1, length(blob) - 1) WHERE first_index = 1",
		"blob is empty":       "UPDATE record_groups SET blob = x'' WHERE first_index = 1",
		"length is too long":  "UPDATE record_groups SET blob = x'ffffffffffffffffffffff' WHERE first_index = 1",
	} {
		t.Run(name, func(t *testing.T) {
			r := openTest(t)
			appendGroups(t, r, 1, 3, 1)
			update(t, r, func(tx *Tx) error {
				_, err := tx.conn.ExecContext(tx.ctx, damage)
				return err
			})
			var last error
			for _, err := range r.Groups(t.Context(), 0) {
				if last != nil {
					t.Fatal("the sequence went on after its error")
				}
				last = err
			}
			if !errors.Is(last, worker.ErrCorrupt) || !strings.Contains(worker.HintOf(last), "dals-host recover") {
				t.Errorf("%v, hint %q", last, worker.HintOf(last))
			}
		})
	}
}

func TestReadOnlyBesideAHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	if _, err := OpenReadOnly(t.Context(), path); err == nil {
		t.Fatal("a registry that is not there was opened")
	}
	host := openAt(t, path)
	appendGroups(t, host, 2)
	reader, err := OpenReadOnly(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	appendGroups(t, host, 3)
	if size, err := reader.Size(t.Context()); size != 5 || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
	if log := entries(t, reader); len(log) != 5 {
		t.Errorf("%d entries", len(log))
	}
	err = reader.Update(t.Context(), func(*Tx) error { t.Error("closure ran"); return nil })
	if !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("update: %v", err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if reader, err = OpenReadOnly(t.Context(), path); err != nil { // no host now
		t.Fatal(err)
	}
	if log := entries(t, reader); len(log) != 5 {
		t.Errorf("%d entries", len(log))
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte{1, 'a', 2, 'b', 'c'}, int64(2))
	f.Add([]byte{}, int64(0))
	f.Add([]byte{0}, int64(1))
	f.Add([]byte{5, 'a'}, int64(1))
	f.Add([]byte{0x81, 0x00, 'a'}, int64(1))
	f.Add(bytes.Repeat([]byte{0xff}, 11), int64(1))
	f.Fuzz(func(t *testing.T, blob []byte, count int64) {
		list, err := split(blob, count)
		if err != nil {
			if !errors.Is(err, worker.ErrCorrupt) {
				t.Errorf("error of another family: %v", err)
			}
			return
		}
		if int64(len(list)) != count {
			t.Errorf("%d entries, want %d", len(list), count)
		}
		var again []byte
		for _, e := range list {
			again = append(binary.AppendUvarint(again, uint64(len(e))), e...)
		}
		if back, err := split(again, count); err != nil || !slices.EqualFunc(list, back, bytes.Equal) {
			t.Errorf("does not survive a round trip: %v", err)
		}
	})
}

func TestMeta(t *testing.T) {
	t.Parallel()
	r := openTest(t)
	for _, value := range []string{"a", "b"} {
		update(t, r, func(tx *Tx) error { return tx.SetMeta("key", value) })
		if got, err := r.Meta(t.Context(), "key"); err != nil || got != value {
			t.Errorf("meta %q, %v", got, err)
		}
	}
	for range 2 { // the second changes nothing
		update(t, r, func(tx *Tx) error { return tx.DeleteMeta("key") })
		if got, err := r.Meta(t.Context(), "key"); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("meta after it was deleted: %q, %v", got, err)
		}
	}
}
