package crash

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// update has TestMatrix write its lists instead of killing anything:
//
//	go test ./internal/crash -run TestMatrix -update
var update = flag.Bool("update", false, "write the lists of points in testdata, and kill no host")

// chance are the points that come or not as time has it, so that no list has
// them, and what notices instead when they are dropped.
var chance = map[string]string{
	"record/remove":        "what is superseded depends on how many entries are published at a time; strace sees it deleted",
	"containerd/leftovers": "what is left depends on how far containerd had come; strace sees it deleted",
}

// list is the names of points, each with its ends. How often a point comes is
// not in it: many callers share a commit, and a stop asks until it has its
// answer.
func list(points []string) string {
	ends := map[string]map[string]bool{}
	for _, p := range points {
		p, _, _ = strings.Cut(p, "#")
		name, when := cut(p)
		if _, may := chance[name]; may {
			continue
		}
		if ends[name] == nil {
			ends[name] = map[string]bool{}
		}
		ends[name][when] = true
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(ends)) {
		text.WriteString(name + ":")
		for _, when := range []string{"before", "after"} {
			if ends[name][when] {
				text.WriteString(" " + when)
			}
		}
		text.WriteString("\n")
	}
	return text.String()
}

// listed compares the points of an operation with the list that is committed:
// one that is dropped shows there, and so does one that is new.
func (h *host) listed(operation string, points []string) {
	h.t.Helper()
	path := filepath.Join("testdata", "points", h.launcher, strings.ReplaceAll(operation, " ", "-")+".txt")
	got := list(points)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			h.t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatalf("%v (-update writes it)", err)
	}
	missing, added := differences(string(text), got)
	for _, line := range missing {
		h.t.Errorf("%s: of %s, the run has not %q", operation, path, line)
	}
	for _, line := range added {
		h.t.Errorf("%s: %s has not %q (-update adds it)", operation, path, line)
	}
}

// differences are the lines that only one of two texts has.
func differences(want, got string) (missing, added []string) {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	in := func(lines []string) func(string) bool {
		return func(line string) bool { return slices.Contains(lines, line) }
	}
	return slices.DeleteFunc(slices.Clone(w), in(g)), slices.DeleteFunc(slices.Clone(g), in(w))
}

// TestList: a point or one of its ends that is dropped or new is named.
func TestList(t *testing.T) {
	t.Parallel()
	whole := []string{"stage/sync/before#1", "stage/sync/after#1", "stage/sync/before#2", "stage/drop/before#1@control/Forge/before", "stage/drop/after#1"}
	if got := list(whole); got != "stage/drop: before after\nstage/sync: before after\n" {
		t.Fatalf("the list is %q", got)
	}
	missing, added := differences(list(whole), list(whole[:4]))
	if len(missing) != 1 || missing[0] != "stage/drop: before after" || len(added) != 1 || added[0] != "stage/drop: before" {
		t.Errorf("an end dropped: missing %q, added %q", missing, added)
	}
	if missing, added := differences(list(whole), list(whole[:3])); len(missing) != 1 || len(added) != 0 {
		t.Errorf("a point dropped: missing %q, added %q", missing, added)
	}
}
