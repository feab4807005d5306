package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Somebody who may write to a folder may put another thing where a regular file
// was seen a moment ago.
func TestOpenSameNoticesAnExchange(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]func(file string) error{
		"another file": func(file string) error { return os.WriteFile(file, []byte("b"), 0o600) },
		"a pipe":       func(file string) error { return syscall.Mkfifo(file, 0o600) },
		"a link out":   func(file string) error { return os.Symlink("/etc/passwd", file) },
		"a link in":    func(file string) error { return os.Symlink("other", file) },
		"a folder":     func(file string) error { return os.Mkdir(file, 0o700) },
	} {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for _, file := range []string{"file", "other"} {
			if err := root.WriteFile(file, []byte("a"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		info, err := root.Lstat("file")
		if err != nil {
			t.Fatal(err)
		}
		if f, err := openSame(root, "file", info); err != nil {
			t.Fatal(err)
		} else if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		// Moved, not removed: its inode number must not be free for the next.
		file := filepath.Join(dir, "file")
		if err := os.Rename(file, file+".old"); err != nil {
			t.Fatal(err)
		}
		if err := exchange(file); err != nil {
			t.Fatal(err)
		}
		if f, err := openSame(root, "file", info); err == nil {
			t.Errorf("%s: opened %s", name, f.Name())
		} else if strings.Contains(unreadable(err), dir) {
			t.Errorf("%s: the fault tells the path of the folder: %s", name, unreadable(err))
		}
	}
}
