package repotest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// commands are the command lines in the README: each line of a block marked sh
// and each line after a "$ " in a block marked console.
func commands(markdown string) []string {
	var all []string
	block := ""
	for line := range strings.Lines(markdown) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
		if mark, fenced := strings.CutPrefix(line, "```"); fenced {
			block = mark
			continue
		}
		prompted, isPrompt := strings.CutPrefix(line, "$ ")
		switch {
		case block == "sh" && line != "" && !strings.HasPrefix(line, "#"):
			all = append(all, strings.TrimSpace(line))
		case block == "console" && isPrompt:
			all = append(all, strings.TrimSpace(prompted))
		}
	}
	return all
}

// TestReadmeCommands: what the README tells people to run is a make target, or
// is run by the demo or by a test script, word for word.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	makefile := read(t, "Makefile")
	exercised := ""
	for _, name := range tracked(t) {
		if strings.HasPrefix(name, "scripts/") || strings.Contains(name, "/testdata/script/") {
			exercised += read(t, name)
		}
	}
	readme := commands(read(t, "README.md"))
	if len(readme) == 0 {
		t.Fatal("README.md shows no command")
	}
	for _, command := range readme {
		words := strings.Fields(command)
		if words[0] != "make" {
			if !strings.Contains(exercised, command) {
				t.Errorf("README.md: no script or test runs %q", command)
			}
			continue
		}
		for _, target := range words[1:] {
			if !strings.Contains(target, "=") && !strings.Contains(makefile, "\n"+target+":") {
				t.Errorf("README.md: %q: the Makefile has no target %s", command, target)
			}
		}
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	got := commands("```sh\n# why\nmake test # that\n```\n$ not me\n```console\n$ dals-host types\ntemplate\n```\n")
	if want := []string{"make test", "dals-host types"}; !slices.Equal(got, want) {
		t.Errorf("commands = %q, want %q", got, want)
	}
}

// elsewhere finds what is true on one machine only. It is spelled so as not to
// find itself.
var elsewhere = regexp.MustCompile(`(?:^|[\s"'` + "`" + `=(:,])/(?:w[o]rk|r[o]ot|home/[a-z]+)/` +
	`|proxy\.gol[a]ng\.org|sum\.gol[a]ng\.org|registry\.npm[j]s\.org|deb\.deb[i]an\.org|py[p]i\.org`)

// TestNoMachine: a clone says nothing of the machine that it was made on: no
// path of its folders, no address of its package sources.
func TestNoMachine(t *testing.T) {
	t.Parallel()
	const big = 1 << 20 // nothing that a person writes
	for _, name := range tracked(t) {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil || !info.Mode().IsRegular() || info.Size() > big {
			continue // removed and not committed yet, or no text
		}
		for n, line := range strings.Split(read(t, name), "\n") {
			if found := elsewhere.FindString(line); found != "" {
				t.Errorf("%s:%d: %q belongs to one machine, not to the project", name, n+1, strings.TrimSpace(found))
			}
		}
	}
}

func TestElsewhere(t *testing.T) {
	t.Parallel()
	const work = "/wo" + "rk/main"
	for text, want := range map[string]bool{
		work: true, "cd " + work: true, `"` + work + `"`: true,
		"/worker/state": false, "/proc/1/" + "root/x": false, "network/" + "work/x": false,
	} {
		if got := elsewhere.MatchString(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
