package repotest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// root is the top of the repository, seen from this package's folder.
const root = "../.."

const module = "github.com/dals-host/dals-host"

// pkg is what `go list` tells of one package of this module.
type pkg struct {
	ImportPath   string
	Name         string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// path is the package's place below the module: "host/worker".
func (p pkg) path() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// file is one parsed Go file that somebody wrote: not a test, not generated.
type file struct {
	*ast.File
	name string
	set  *token.FileSet
}

// run gives a command's output, or ends the test with what it said.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%s: %v\n%s", cmd, err, exit.Stderr)
		}
		t.Fatalf("%s: %v", cmd, err)
	}
	return out
}

// list decodes the JSON documents that `go list` prints for the arguments.
func list[T any](t *testing.T, args ...string) []T {
	t.Helper()
	// -e: a package that does not build is for the compiler to report.
	out := run(t, "go", append([]string{"list", "-e"}, args...)...)
	var all []T
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var one T
		if err := dec.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("read go list: %v", err)
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		t.Fatalf("go list %v named nothing", args)
	}
	return all
}

func packages(t *testing.T) []pkg {
	t.Helper()
	return list[pkg](t, "-json=ImportPath,Name,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
}

// written parses the package's files that somebody wrote.
func (p pkg) written(t *testing.T) []file {
	t.Helper()
	var files []file
	for _, name := range p.GoFiles {
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatalf("parse %s/%s: %v", p.path(), name, err)
		}
		if !ast.IsGenerated(parsed) {
			files = append(files, file{File: parsed, name: name, set: set})
		}
	}
	return files
}

// tracked names the files that git knows, below root.
func tracked(t *testing.T) []string {
	t.Helper()
	return strings.Split(strings.TrimSuffix(string(run(t, "git", "ls-files", "-z")), "\x00"), "\x00")
}
