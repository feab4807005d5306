package sdk

import (
	"errors"
	"testing"

	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/wire"
)

// TestMount: a worker finds what it was granted where its launcher says, or else at
// its place.
func TestMount(t *testing.T) {
	caps, err := capability.Set([]string{"mount:/mnt/in=/srv/in:ro#1.2", "mount:/mnt/out=/srv/out#3.4", "egress:a.org:443"})
	if err != nil {
		t.Fatal(err)
	}
	w := &Worker{grants: caps}
	for said, want := range map[string]string{
		"": "/mnt/out", "/mnt/in=/proc/self/fd/6:/mnt/out=/proc/self/fd/7": "/proc/self/fd/7", "rubbish": "/mnt/out",
	} {
		t.Setenv(wire.WorkerMountsEnv, said)
		if got, err := w.Mount("/mnt/out"); err != nil || got != want {
			t.Errorf("%q: %q, %v", said, got, err)
		}
	}
	for _, place := range []string{"", "/mnt/other", "/srv/in", "mount:/mnt/in"} {
		if got, err := w.Mount(place); !errors.Is(err, ErrNotGranted) {
			t.Errorf("%s: %q, %v", place, got, err)
		}
	}
}
