package manifest

import (
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Entry is one file or directory below a worker's folder. The path of a
// directory ends in a slash; its size is 0 and its SHA256 empty.
type Entry struct {
	Path   string `json:"path"`
	Mode   string `json:"mode"` // four octal digits
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// The bounds of a folder that can be scanned.
const (
	maxEntries  = 4096
	maxFileSize = 16 << 20 // bytes
	maxGrants   = 32
)

var (
	modeForm  = regexp.MustCompile(`^[0-7]{4}$`)
	grantForm = regexp.MustCompile(`^[a-z]+(:[!-~]+)?$`)
)

func isSHA256(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// isGrant bounds a grant's length by itself: an expression that did would cost each
// worker 0.7 ms of CPU when it starts.
func isGrant(g string) bool {
	name, object, _ := strings.Cut(g, ":")
	return grantForm.MatchString(g) && len(name) <= 32 && len(object) <= 223
}

func (e Entry) isDir() bool { return strings.HasSuffix(e.Path, "/") }

func (e Entry) check(format int) error {
	name := strings.TrimSuffix(e.Path, "/")
	switch {
	case !fs.ValidPath(name) || name == "." || !isPrintable(name):
		return fmt.Errorf("file %q: not a path below the folder", e.Path)
	case e.Path == File || e.Path == SignatureFile || isMutable(strings.SplitAfterN(e.Path, "/", 2)[0]), format == FormatGranted && isDoor(e.Path):
		return fmt.Errorf("file %q: never in a manifest", e.Path)
	case !modeForm.MatchString(e.Mode):
		return fmt.Errorf("file %q: mode %q is not four octal digits", e.Path, e.Mode)
	case e.isDir() && (e.Size != 0 || e.SHA256 != ""):
		return fmt.Errorf("file %q: a directory with content", e.Path)
	case !e.isDir() && (e.Size < 0 || e.Size > maxFileSize || !isSHA256(e.SHA256)):
		return fmt.Errorf("file %q: size or sha256 is out of form", e.Path)
	}
	return nil
}

// isMutable says whether a path, a directory's with its slash, is one of the
// folders that change while a worker lives.
func isMutable(path string) bool { return path == "state/" || path == "run/" || path == "logs/" }

func isDoor(path string) bool { return strings.HasPrefix(path, DoorDir+"/") }

// isPrintable keeps names out that JSON or a terminal would show as others.
func isPrintable(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}

// display writes a path as it is, or quoted when it could disguise itself.
func display(path string) string {
	if isPrintable(path) {
		return path
	}
	return strconv.QuoteToASCII(path)
}

// octal is a mode as chmod takes it.
func octal(m fs.FileMode) string {
	bits := m.Perm()
	if m&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return fmt.Sprintf("%04o", uint32(bits))
}
