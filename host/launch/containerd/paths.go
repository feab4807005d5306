package containerd

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dals-host/dals-host/host/worker"
)

// checkPath refuses a folder that containerd and its shims cannot work with: they
// read the paths of sockets and logs as URLs, and its configuration as TOML.
func checkPath(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("path %q is relative: %w", path, worker.ErrInvalid)
	}
	if !utf8.ValidString(path) {
		return fmt.Errorf("path %q is not UTF-8: %w", path, worker.ErrInvalid)
	}
	bad := func(r rune) bool { return strings.ContainsRune("%?#:", r) || unicode.IsControl(r) }
	if i := strings.IndexFunc(path, bad); i >= 0 {
		r, _ := utf8.DecodeRuneInString(path[i:])
		return fmt.Errorf("path %q has a %q in it, which containerd or crun would misread: %w", path, r, worker.ErrInvalid)
	}
	return nil
}
