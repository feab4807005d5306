package launch

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

func TestExitReads(t *testing.T) {
	t.Parallel()
	for want, exit := range map[string]Exit{
		"exit code 0":                      {},
		"exit code 3":                      {Code: 3},
		"killed by SIGTERM":                {Code: 143, Signal: "SIGTERM"},
		"killed by SIGKILL, out of memory": {Code: 137, Signal: "SIGKILL", OOMKilled: true},
		"ended while no host was watching": {Unknown: true},
	} {
		if got := exit.String(); got != want {
			t.Errorf("%+v reads %q, want %q", exit, got, want)
		}
	}
}

func TestCheckHasBounds(t *testing.T) {
	t.Parallel()
	good := Spec{
		Serial: "DMN-XX-1-00000000-00000", Dir: "/d", UID: 1,
		Image: Image{Digest: strings.Repeat("0f", 32), Path: "/p"},
	}
	for name, c := range map[string]struct {
		spoil func(*Spec)
		ok    bool
	}{
		"lowest uid":  {func(*Spec) {}, true},
		"highest uid": {func(s *Spec) { s.UID = math.MaxInt32 }, true},
		"uid above":   {func(s *Spec) { s.UID = math.MaxInt32 + 1 }, false},
		"root":        {func(s *Spec) { s.UID = 0 }, false},
		"upper case":  {func(s *Spec) { s.Image.Digest = strings.Repeat("0F", 32) }, false},
		"newline":     {func(s *Spec) { s.Image.Digest += "\n" }, false},
		"some limits": {func(s *Spec) { s.Limits = worker.Limits{MemoryBytes: 1, CPUMillis: 1, PIDs: 1} }, true},
	} {
		spec := good
		c.spoil(&spec)
		if err := spec.Check(); (err == nil) != c.ok || (err != nil && !errors.Is(err, worker.ErrInvalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
