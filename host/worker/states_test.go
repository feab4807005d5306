package worker

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestStates: a constant that StateNames leaves out could never be asked for.
func TestStates(t *testing.T) {
	source, err := os.ReadFile("worker.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\tState\w+ +State = "(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(declared) == 0 || len(declared) != len(StateNames()) {
		t.Fatalf("%d states are declared, %d listed", len(declared), len(StateNames()))
	}
	for _, d := range declared {
		if s, err := ParseState(d[1]); err != nil || string(s) != d[1] {
			t.Errorf("ParseState(%s) = %s, %v", d[1], s, err)
		}
	}
	for _, bad := range []string{"", "xyz", "Live", "live ", strings.Repeat("x", 300)} {
		_, err := ParseState(bad)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(HintOf(err), "live, restarting") || len(err.Error()) > 120 {
			t.Errorf("ParseState(%q): %v, hint %q", bad, err, HintOf(err))
		}
	}
}
