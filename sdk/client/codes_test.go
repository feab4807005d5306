package client_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/sdk/client"
)

// TestCodesAreThoseOfTheDocs: programs find every code that the docs list among
// the constants, and none that they do not. What a worker says without its
// author is among them too.
func TestCodesAreThoseOfTheDocs(t *testing.T) {
	codes := constants(t, "codes.go", "Code")
	listed := listedCodes(t)
	if len(listed) < 20 {
		t.Fatalf("the docs list %d codes only: %v", len(listed), listed)
	}
	for _, code := range listed {
		if !slices.Contains(codes, code) {
			t.Errorf("docs/SECURITY.md lists %s: it has no constant", code)
		}
	}
	for i, code := range codes {
		if code != client.CodeBadResult && !slices.Contains(listed, code) {
			t.Errorf("docs/SECURITY.md does not list %s", code)
		}
		if slices.Contains(codes[:i], code) {
			t.Errorf("%s has two constants", code)
		}
	}
	for _, code := range constants(t, filepath.Join("..", "failure.go"), "code") {
		if !slices.Contains(codes, code) {
			t.Errorf("workers say %s: it has no constant", code)
		}
	}
}

// listedCodes are the codes that the docs tell programs to rely on.
func listedCodes(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n### Codes of refusals\n")
	if !found {
		t.Fatal("docs/SECURITY.md has no codes of refusals")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var codes []string
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(section, -1) {
		if !slices.Contains(codes, m[1]) {
			codes = append(codes, m[1])
		}
	}
	return codes
}

// constants are the values of a file's text constants whose name has a prefix.
func constants(t *testing.T, file, prefix string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, value := range spec.Values {
			literal, ok := value.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING || !strings.HasPrefix(spec.Names[i].Name, prefix) {
				continue
			}
			text, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, text)
		}
		return true
	})
	if len(values) == 0 {
		t.Fatalf("%s has no constants %s…", file, prefix)
	}
	return values
}
