package failpoint

import (
	"bytes"
	"errors"
	"go/build"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// goBuild builds a package of the module and gives the binary's path.
func goBuild(t *testing.T, pkg string, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "binary")
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", out}, flags...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return out
}

// TestRelease: nothing of the points is in a release build: no code, no name of
// a point, no variable of the environment. The tagged build shows that the test
// could see them.
func TestRelease(t *testing.T) {
	t.Parallel()
	traces := []string{"DALS_FAILPOINT", "internal/failpoint", "sync parents", "rootfs folders"}
	for _, test := range []struct {
		flags []string
		want  bool
	}{{nil, false}, {[]string{"-tags", "failpoint"}, true}} {
		binary := goBuild(t, "github.com/dals-host/dals-host/cmd/dals-host", test.flags...)
		code, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		symbols, err := exec.CommandContext(t.Context(), "go", "tool", "nm", binary).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range traces {
			if got := bytes.Contains(code, []byte(trace)); got != test.want {
				t.Errorf("built with %v: %q in the binary: %t", test.flags, trace, got)
			}
		}
		if got := bytes.Contains(symbols, []byte("internal/failpoint.")); got != test.want {
			t.Errorf("built with %v: symbols of the package: %t", test.flags, got)
		}
	}
}

// TestShape: without the tag the package imports nothing.
func TestShape(t *testing.T) {
	t.Parallel()
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(pkg.Imports) != 0 {
		t.Errorf("a release build imports %v", pkg.Imports)
	}
}

func TestPoints(t *testing.T) {
	t.Parallel()
	binary := goBuild(t, "./testdata/points", "-tags", "failpoint")
	for _, test := range []struct {
		point, hits string
		said        string
		dies        bool
	}{
		{"", "a b", "a b", false},
		{"c/x", "a b", "a b", false},
		{"b/x", "a b b", "a", true},
		{"b/x#2", "b a b b", "b a", true},
		{"b/x@a/x", "b a b", "b a", true},
		{"b/x#2@a/x", "b a b a b", "b a b a", true},
		{"a/x@a/x", "a b a", "a b", true},
	} {
		t.Run(test.point, func(t *testing.T) {
			t.Parallel()
			trace := filepath.Join(t.TempDir(), "trace")
			cmd := exec.CommandContext(t.Context(), binary, strings.Fields(test.hits)...)
			cmd.Env = []string{"DALS_FAILPOINT=" + test.point, "DALS_FAILPOINT_TRACE=" + trace}
			out, err := cmd.Output()
			var exit *exec.ExitError
			killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if said := strings.Join(strings.Fields(string(out)), " "); said != test.said || killed != test.dies {
				t.Errorf("said %q, killed %t (%v)", said, killed, err)
			}
			traced, err := os.ReadFile(trace)
			want := test.said
			if test.dies {
				want = test.hits[:len(test.said)+2] // the point itself is traced
			}
			if got := strings.ReplaceAll(strings.Join(strings.Fields(string(traced)), " "), "/x", ""); err != nil || got != want {
				t.Errorf("traced %q, want %q, %v", got, want, err)
			}
		})
	}
}

// TestPause: the process waits at the point until it is told to go on.
func TestPause(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), goBuild(t, "./testdata/points", "-tags", "failpoint"), "a", "b")
	cmd.Env = []string{"DALS_FAILPOINT=b/x", "DALS_FAILPOINT_PAUSE=" + fifo}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said := func() string {
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	cmd.Stdout = out // the process writes it itself: nobody copies meanwhile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	name, err := os.ReadFile(fifo)
	if err != nil || string(name) != "b/x" || said() != "a\n" {
		t.Fatalf("at %q after %q, %v", name, said(), err)
	}
	if err := os.WriteFile(fifo, []byte("go on"), 0); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || said() != "a\nb\n" {
		t.Fatalf("%v after %q", err, said())
	}
}

// TestMisspelt: a number that is none ends the process, and says why.
func TestMisspelt(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), goBuild(t, "./testdata/points", "-tags", "failpoint"), "a")
	cmd.Env = []string{"DALS_FAILPOINT=a/x#0"}
	if text, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(text), "no such hit") {
		t.Fatalf("%v: %s", err, text)
	}
}
