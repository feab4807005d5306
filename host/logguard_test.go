package host

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestNoGuard: a host whose log guard cannot be started comes up.
func TestNoGuard(t *testing.T) {
	t.Parallel()
	h, err := New(t.Context(), Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Launcher: launcherProcess, LogGuard: []string{"/proc/none"}, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
}
