package repotest

import (
	"slices"
	"strings"
	"testing"
)

// layer says what packages may import of this module. A pattern is a path
// below the module; with "/..." at its end it is that path and all below.
type layer struct {
	packages string
	may      []string
	why      string
}

// layers is read from the top: the first pattern that matches a package holds.
// The same rules stand in .golangci.yml, for the editor.
var layers = slices.Concat(
	[]layer{
		{"host/worker/...", nil, "the words of the domain are a leaf that every layer can speak"},
		{"host/internal/...", []string{"host/internal/...", "host/worker"}, "small mechanisms below everything else in the host"},
		{"host/launch/process/...", launcher("process"), "a launcher knows the interface, never another launcher"},
		{"host/launch/containerd/shim", []string{"host/launch/internal/...", "sdk/idle"}, "each shim is a process for sixteen workers: it has what it needs, and nothing of the host"},
		{"host/launch/containerd/...", launcher("containerd"), "a launcher knows the interface, never another launcher"},
		{"host/launch/launchtest/...", launcher("launchtest"), "the contract suite runs on any launcher, so it knows none"},
	},
	each([]string{"registry", "record", "stage", "keyring", "ports", "launch"}, nil,
		"mechanisms do not import each other; host joins them"),
	each([]string{"catalog"}, append([]string{"host/launch/containerd"}, mechanisms...),
		"the catalog probes binaries in a container cage; above the mechanisms nothing imports its sibling"),
	each([]string{"forge", "gate", "broker", "supervise", "control", "care", "dashboard", "door", "ingress"}, mechanisms,
		"siblings above the mechanisms declare what they need as interfaces; host joins them"),
	[]layer{
		{"host", []string{"host/...", "sdk/..."}, "the composition root joins everything in the host; only commands stand above it"},
		{"cmd/containerd-shim-dals-v1", []string{"host/launch/containerd/shim"}, "the shim is that package, under a name"},
		{"cmd/...", []string{"cmd/...", "host", "host/worker", "sdk/...", "internal/..."}, "a command is flags, one call and print"},
		{"plugins/...", []string{"sdk/..."}, "what our own plugins can do, a stranger's can: the public road only"},
		{"sdk/...", []string{"sdk/..."}, "plugin authors depend on the sdk, never on the host"},
		{"internal/...", []string{"internal/...", "sdk/..."}, "what tests need stands on the public road"},
	},
)

var mechanisms = []string{"host/registry", "host/record", "host/stage", "host/keyring", "host/ports", "host/launch"}

// everywhere is what all of the host may import.
var everywhere = []string{"host/worker", "host/internal/...", "sdk/..."}

func launcher(name string) []string {
	return slices.Concat([]string{"host/launch", "host/launch/internal/...", "host/launch/" + name + "/..."}, everywhere)
}

// each gives every named package of the host the right to import itself (what
// lies below it), what everybody may, and what is given.
func each(names, given []string, why string) []layer {
	var all []layer
	for _, name := range names {
		own := "host/" + name + "/..."
		all = append(all, layer{own, slices.Concat([]string{own}, everywhere, given), why})
	}
	return all
}

// fences keep one dependency in one place.
var fences = []struct {
	dependency string // an import path and all below it
	only       []string
	why        string
}{
	{"github.com/containerd", []string{"host/launch/containerd/..."}, "containers are one launcher's business"},
	{"database/sql", []string{"host/registry/..."}, "one committer owns the database"},
	{"modernc.org/sqlite", []string{"host/registry/..."}, "one committer owns the database"},
	{"github.com/hashicorp/go-plugin", []string{"sdk/...", "host/catalog/...", "host/launch/containerd/..."}, "go-plugin is the type plane only (docs/adr/0002): who asks a plugin, and the cage it is asked in"},
	{"github.com/spf13/cobra", []string{"cmd/..."}, "flags end at the command"},
}

func matches(path, pattern string) bool {
	below, isTree := strings.CutSuffix(pattern, "/...")
	return path == below || isTree && strings.HasPrefix(path, below+"/")
}

func matchesAny(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(path, pattern) })
}

// breaches says what a package imports that its layer or a fence forbids.
// Tests of the host may reach across (they use real neighbours); tests of the
// sdk and of plugins may not, because authors copy them.
func breaches(p pkg) []string {
	var all []string
	at := slices.IndexFunc(layers, func(l layer) bool { return matches(p.path(), l.packages) })
	if at < 0 {
		return []string{"stands in no layer: add it to the table in layers_test.go, with the reason"}
	}
	imports := p.Imports
	if matchesAny(p.path(), []string{"sdk/...", "plugins/..."}) {
		imports = slices.Concat(imports, p.TestImports, p.XTestImports)
	}
	for _, imported := range imports {
		inside, ours := strings.CutPrefix(imported, module+"/")
		if ours && !matches(inside, p.path()) && !matchesAny(inside, layers[at].may) {
			all = append(all, "imports "+inside+": "+layers[at].why)
		}
	}
	for _, fence := range fences {
		for _, imported := range p.Imports {
			if matches(imported, fence.dependency+"/...") && !matchesAny(p.path(), fence.only) {
				all = append(all, "imports "+imported+": "+fence.why)
			}
		}
	}
	return all
}

// TestLayers: arrows point down, and a dependency that has one home stays there.
func TestLayers(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, breach := range breaches(p) {
			t.Errorf("%s %s", p.path(), breach)
		}
	}
}

func TestBreaches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		path, imports string
		want          int
	}{
		{"host/forge", module + "/host/registry", 0},
		{"host/forge", module + "/host/gate", 1},
		{"host/forge", module + "/host/registry/sqlcgen", 1},
		{"host/registry", module + "/host/registry/sqlcgen", 0},
		{"host/registry", module + "/host/record", 1},
		{"host/registry", "database/sql", 0},
		{"host/record", "database/sql", 1},
		{"host/launch/process", module + "/host/launch/containerd", 1},
		{"host/launch/process", "github.com/containerd/errdefs", 1},
		{"host/catalog", module + "/host/launch/containerd", 0},
		{"host/worker", module + "/sdk/proof", 1},
		{"sdk/client", module + "/host/worker", 1},
		{"plugins/ledger", module + "/host", 1},
		{"plugins/ledger", module + "/sdk", 0},
		{"cmd/dals-host", module + "/host/forge", 1},
		{"cmd/containerd-shim-dals-v1", module + "/host", 1},
		{"host/launch/containerd/shim", module + "/host/worker", 1},
		{"elsewhere", "fmt", 1},
	} {
		p := pkg{ImportPath: module + "/" + c.path, Imports: []string{c.imports}}
		if got := breaches(p); len(got) != c.want {
			t.Errorf("%s imports %s: %q, want %d breaches", c.path, c.imports, got, c.want)
		}
	}
	p := pkg{ImportPath: module + "/sdk", XTestImports: []string{module + "/host"}}
	if got := breaches(p); len(got) != 1 {
		t.Errorf("a test of the sdk imports the host: %q, want one breach", got)
	}
}
