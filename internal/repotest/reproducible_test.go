package repotest

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dals-host/dals-host/host/launch/containerd"
)

// TestSameSourceSameImage builds the plugins as `make plugins` does in two copies
// of the repository: in two folders, under two umasks, of two dates, each with
// an empty build cache. The binaries are the same bytes, and so are the images
// that containerd gets.
func TestSameSourceSameImage(t *testing.T) {
	t.Parallel()
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "another place", "deeper", "two")
	copyRepo(t, root, one, "022", "2001-02-03T04:05:06Z")
	copyRepo(t, one, two, "077", "2033-12-31T23:59:59Z")
	buildPlugins(t, one, "SOURCE_DATE_EPOCH=1", "TZ=UTC-1")
	buildPlugins(t, two, "SOURCE_DATE_EPOCH=2000000000", "TZ=UTC-13")
	plugins, err := filepath.Glob(filepath.Join(one, "bin", "plugins", "dals-worker-*"))
	if err != nil || len(plugins) == 0 {
		t.Fatalf("built %v, %v", plugins, err)
	}
	for _, path := range plugins {
		other := filepath.Join(two, "bin", "plugins", filepath.Base(path))
		if a, b := fileDigest(t, path), fileDigest(t, other); a != b {
			t.Errorf("%s is %s in one copy and %s in the other", filepath.Base(path), a, b)
		}
		a, err := containerd.ImageDigest(path)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := containerd.ImageDigest(other); err != nil || a != b {
			t.Errorf("the image of %s is %s of one copy and %s of the other (%v)", filepath.Base(path), a, b, err)
		}
	}
}

// copyRepo copies what a commit of the repository would hold, or a copy of it,
// and makes all files of one date.
func copyRepo(t *testing.T, from, to, umask, date string) {
	t.Helper()
	sh(t, from, `
		umask "$UMASK"
		mkdir -p "$TO"
		if [ -e .git ]; then git ls-files -z --cached --others --exclude-standard; else find . -type f -print0; fi |
			tar --create --null --files-from - | tar --extract --no-same-permissions --directory "$TO"
		find "$TO" -exec touch --date "$DATE" {} +`, "TO="+to, "UMASK="+umask, "DATE="+date)
}

// buildPlugins builds with an empty cache, and at a low priority: whatever else
// is tested meanwhile minds its time.
func buildPlugins(t *testing.T, dir string, env ...string) {
	t.Helper()
	sh(t, dir, "exec nice -n 10 make plugins", append(env, "GOCACHE="+t.TempDir(), "GOFLAGS=", "MAKEFLAGS=")...)
}

func sh(t *testing.T, dir, script string, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in %s: %v\n%s", dir, err, out)
	}
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
