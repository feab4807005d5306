package repotest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

func readMod(t *testing.T, path string) *modfile.File {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse(path, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	return mod
}

// required is the version that the go.mod asks for, "" for none.
func required(mod *modfile.File, path string) string {
	for _, r := range mod.Require {
		if r.Mod.Path == path {
			return r.Mod.Version
		}
	}
	return ""
}

// TestNoReplace: a replace is not seen by those who import the sdk, and `go
// install ...@latest` refuses a module that has one.
func TestNoReplace(t *testing.T) {
	t.Parallel()
	mods := slices.DeleteFunc(tracked(t), func(name string) bool { return filepath.Base(name) != "go.mod" })
	if len(mods) == 0 {
		t.Fatal("no go.mod is tracked")
	}
	for _, name := range mods {
		for _, r := range readMod(t, filepath.Join(root, name)).Replace {
			t.Errorf("%s replaces %s: pin a version that works instead", name, r.Old.Path)
		}
	}
}

// TestPinnedTogether: versions that must move together, although Go's minimal
// version selection would let them drift apart.
func TestPinnedTogether(t *testing.T) {
	t.Parallel()
	ours := readMod(t, filepath.Join(root, "go.mod"))

	// SQLite is translated against one version of libc; another may crash it.
	const libc = "modernc.org/libc"
	sqlite := readMod(t, strings.TrimSpace(string(run(t, "go", "list", "-m", "-f", "{{.GoMod}}", "modernc.org/sqlite"))))
	if got, want := required(ours, libc), required(sqlite, libc); got != want {
		t.Errorf("go.mod has %s %s, but modernc.org/sqlite was made for %s", libc, got, want)
	}

	// Generated code checks at start that its runtime is not older than it.
	const protobuf = "google.golang.org/protobuf"
	generator := readMod(t, filepath.Join(root, "tools/protoc/go.mod"))
	if got, want := required(generator, protobuf), required(ours, protobuf); got != want {
		t.Errorf("tools/protoc generates for %s %s, but go.mod links %s", protobuf, got, want)
	}
}

// licences are those that may be linked: permissive ones, and the MPL, which
// asks only that changes to its own files are given on. The first words that a
// text contains name it; "" refuses it.
var licences = []struct{ name, words string }{
	{"MPL-2.0", "mozilla public license version 2.0"}, // before the GPL, which it mentions
	{"MPL-2.0", "mozilla public license, version 2.0"},
	{"", "gnu affero general public license"},
	{"", "gnu lesser general public license"},
	{"", "gnu general public license"},
	{"", "business source license"},
	{"", "server side public license"},
	{"Apache-2.0", "apache license version 2.0"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"BSD", "redistribution and use in source and binary forms, with or without modification, are permitted"},
	{"ISC", "permission to use, copy, modify, and/or distribute this software for any purpose"},
	{"ISC", "permission to use, copy, modify, and distribute this software for any purpose"},
	{"Unlicense", "this is free and unencumbered software released into the public domain"},
}

// classify names the licence of a text, "" for one that may not be linked or
// that nobody has looked at.
func classify(text string) string {
	words := strings.ToLower(strings.Join(strings.Fields(text), " "))
	for _, l := range licences {
		if strings.Contains(words, l.words) {
			return l.name
		}
	}
	return ""
}

// TestLicences: whoever ships the host or a plugin can do so under Apache-2.0.
func TestLicences(t *testing.T) {
	t.Parallel()
	type dependency struct {
		Module *struct {
			Path, Version, Dir string
			Main               bool
		}
	}
	isLicence := regexp.MustCompile(`(?i)^(licen[sc]e|copying)(\.(md|txt))?$`)
	seen := make(map[string]bool)
	for _, dep := range list[dependency](t, "-deps", "-json=Module", "./...") {
		m := dep.Module
		if m == nil || m.Main || seen[m.Path] {
			continue
		}
		seen[m.Path] = true
		files, err := os.ReadDir(m.Dir)
		if err != nil {
			t.Errorf("%s %s: %v", m.Path, m.Version, err)
			continue
		}
		at := slices.IndexFunc(files, func(f os.DirEntry) bool { return isLicence.MatchString(f.Name()) })
		if at < 0 {
			t.Errorf("%s %s has no licence file: it may not be linked", m.Path, m.Version)
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.Dir, files[at].Name()))
		if err != nil {
			t.Errorf("%s %s: %v", m.Path, m.Version, err)
			continue
		}
		if classify(string(text)) == "" {
			t.Errorf("%s %s: the licence in %s is not permissive, or not known to this test", m.Path, m.Version, files[at].Name())
		}
	}
	if len(seen) == 0 {
		t.Error("no linked module was found")
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Apache License\n   Version 2.0, January 2004":                                     "Apache-2.0",
		"Mozilla Public License Version 2.0 ... the GNU General Public License, Version 2": "MPL-2.0",
		"GNU GENERAL PUBLIC LICENSE\nVersion 3":                                            "",
		"Business Source License 1.1":                                                      "",
		"All rights reserved.":                                                             "",
	} {
		if got := classify(text); got != want {
			t.Errorf("classify(%q) = %q, want %q", text, got, want)
		}
	}
}
