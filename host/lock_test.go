package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// TestCheckOwners runs as root, as make test sees to: only root can make what
// belongs to others.
func TestCheckOwners(t *testing.T) {
	t.Parallel()
	const somebody = 12345
	tests := map[string]struct {
		spoil func(above, dir string) error
		ok    bool
	}{
		"our own":              {func(string, string) error { return nil }, true},
		"somebody's":           {func(_, dir string) error { return os.Chown(dir, somebody, somebody) }, false},
		"below somebody's":     {func(above, _ string) error { return os.Chown(above, somebody, somebody) }, false},
		"below an open one":    {func(above, _ string) error { return os.Chmod(above, 0o777) }, false},
		"below a sticky one":   {func(above, _ string) error { return os.Chmod(above, 0o777|os.ModeSticky) }, true},
		"by somebody's link":   {func(above, dir string) error { return relink(above, dir, somebody) }, false},
		"by a link of our own": {func(above, dir string) error { return relink(above, dir, 0) }, true},
	}
	for name, test := range tests {
		top, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		above := filepath.Join(top, "above")
		dir := filepath.Join(above, "data")
		if err := errors.Join(os.MkdirAll(dir, 0o700), test.spoil(above, dir)); err != nil {
			t.Fatal(err)
		}
		err = checkOwners(dir)
		if test.ok && err != nil || !test.ok && (!errors.Is(err, worker.ErrRefused) || worker.HintOf(err) == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// relink moves the folder above away and leaves a link to it.
func relink(above, _ string, owner int) error {
	return errors.Join(os.Rename(above, above+"-moved"), os.Symlink(above+"-moved", above), os.Lchown(above, owner, owner))
}

func TestUIDBlocks(t *testing.T) {
	t.Parallel()
	a, b := firstUIDOf("0123456789abcdef"), firstUIDOf("fedcba9876543210")
	if a == b || a < firstUID || (a-firstUID)%uidsPerHost != 0 || firstUID+uidBlocks*uidsPerHost > 1<<31-1 {
		t.Errorf("blocks at %d and %d", a, b)
	}
	if root := rootUIDOf("0123456789abcdef"); root < a+probeUIDs || root >= a+uidsPerHost {
		t.Errorf("root of user namespaces %d, of the block at %d", root, a)
	}
}
