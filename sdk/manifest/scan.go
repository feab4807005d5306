package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// Scan lists what a manifest of the folder lists: every regular file and
// directory below it but the manifest's own two files, what is in state, run and
// logs, and the door, sorted by path. Anything else (a link, a device, a socket), a name
// that does not print and a file above 16 MiB is an error that names every such
// path. Files are hashed as a stream.
func Scan(root *os.Root) ([]Entry, error) {
	s := scan{root: root, hasDoor: true}
	s.folder(".")
	if err := s.err(); err != nil {
		return nil, fmt.Errorf("scan %s: %w", root.Name(), err)
	}
	slices.SortFunc(s.entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return s.entries, nil
}

// scan collects a folder's entries, and what is wrong with the rest.
type scan struct {
	root    *os.Root
	hasDoor bool // a door is not looked at
	entries []Entry
	faults  []fault
	full    bool
}

// fault is one thing that is wrong with one path.
type fault struct{ path, what string }

func (s *scan) fault(p, what string) { s.faults = append(s.faults, fault{p, what}) }

func (s *scan) folder(dir string) {
	names, err := readNames(s.root, dir)
	if err != nil {
		s.fault(dir, unreadable(err))
	}
	for _, name := range names {
		if s.full {
			return
		}
		s.entry(path.Join(dir, name))
	}
}

func (s *scan) entry(p string) {
	if p == File || p == SignatureFile {
		return
	}
	if !isPrintable(p) {
		s.fault(p, "a name that does not print")
		return
	}
	info, err := s.root.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return // gone since the folder was read: as if it had never been seen
	case err != nil:
		s.fault(p, unreadable(err))
	case info.IsDir() && (isMutable(p+"/") || s.hasDoor && p == DoorDir):
		return
	case len(s.entries)+len(s.faults) >= maxEntries:
		s.overflow()
	case info.IsDir():
		s.entries = append(s.entries, Entry{Path: p + "/", Mode: octal(info.Mode())})
		s.folder(p)
	case !info.Mode().IsRegular():
		s.fault(p, kindOf(info.Mode()))
	default:
		s.file(p, info)
	}
}

// overflow ends a list that nobody would want to read to its end.
func (s *scan) overflow() {
	if !s.full {
		s.full = true
		s.fault(".", fmt.Sprintf("more than %d files", maxEntries))
	}
}

func (s *scan) file(p string, info fs.FileInfo) {
	f, err := openSame(s.root, p, info)
	if err != nil {
		s.fault(p, unreadable(err))
		return
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		s.fault(p, unreadable(err))
		return
	}
	h := sha256.New()
	size, err := io.Copy(h, io.LimitReader(f, maxFileSize+1))
	switch {
	case err != nil:
		s.fault(p, unreadable(err))
	case size > maxFileSize:
		s.fault(p, fmt.Sprintf("more than %d bytes", maxFileSize))
	default:
		s.entries = append(s.entries, Entry{
			Path: p, Mode: octal(info.Mode()), Size: size, SHA256: hex.EncodeToString(h.Sum(nil)),
		})
	}
}

// readNames is one directory's names, sorted, and no more than can be of use.
func readNames(root *os.Root, dir string) ([]string, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries + 1)
	slices.Sort(names)
	if errors.Is(err, io.EOF) { // an empty directory
		err = nil
	}
	return names, err
}

// openSame opens the regular file that info describes. Between the two looks
// somebody may have put another thing there: a link is not followed, a pipe
// does not block, and whatever is not the same file is an error.
func openSame(root *os.Root, p string, info fs.FileInfo) (*os.File, error) {
	f, err := root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(now, info) {
		err = errors.New("changed while it was read")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "is a symlink"
	case m&fs.ModeNamedPipe != 0:
		return "is a pipe"
	case m&fs.ModeSocket != 0:
		return "is a socket"
	case m&fs.ModeDevice != 0:
		return "is a device"
	}
	return "is not a regular file"
}

// unreadable says why, without the paths that os puts into its errors.
func unreadable(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	return "cannot be read: " + err.Error()
}
