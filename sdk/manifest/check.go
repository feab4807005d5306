package manifest

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/dals-host/dals-host/sdk/proof"
)

// Fault lists every difference between a folder and its manifest, each as
// "path: what", sorted.
type Fault struct {
	Differences []string
}

// maxNamed bounds how many differences the text of a Fault names.
const maxNamed = 8

// Error names the first differences and counts the rest.
func (f *Fault) Error() string {
	named := f.Differences[:min(len(f.Differences), maxNamed)]
	text := strings.Join(named, "; ")
	if more := len(f.Differences) - len(named); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// err is a *Fault of everything that was found wrong, or nil.
func (s *scan) err() error {
	if len(s.faults) == 0 {
		return nil
	}
	f := &Fault{}
	for _, each := range s.faults {
		f.Differences = append(f.Differences, display(each.path)+": "+each.what)
	}
	slices.Sort(f.Differences)
	return f
}

// Check reads the manifest of the folder, verifies its signature under the
// host's manifest key, and compares the folder with it. The error is a *Fault
// that lists every difference; where the manifest itself does not hold, nothing
// else is compared with it, but what could never be in a manifest is listed.
//
// A whole folder of another worker of the same host checks well: the caller
// compares WorkerSerial.
func Check(root *os.Root, public ed25519.PublicKey) (*Manifest, error) {
	s := scan{root: root}
	m := s.manifest(public)
	s.hasDoor = m == nil || m.Format == FormatGranted
	s.folder(".")
	if m != nil {
		s.compare(m)
	}
	if err := s.err(); err != nil {
		return nil, err
	}
	return m, nil
}

// manifest reads the two files of the manifest; nil when they do not hold, and
// then there is a fault that says why.
func (s *scan) manifest(public ed25519.PublicKey) *Manifest {
	encoded, ok := s.readOwn(File, MaxSize)
	signature, okSig := s.readOwn(SignatureFile, proof.Size)
	if !ok || !okSig {
		return nil
	}
	if err := Verify(public, encoded, signature); err != nil {
		s.fault(File, "not what this host signed in "+SignatureFile)
		return nil
	}
	m, err := Decode(encoded)
	if err != nil {
		s.fault(File, err.Error())
		return nil
	}
	return m
}

// readOwn reads one of the manifest's two files, which no manifest lists.
func (s *scan) readOwn(name string, limit int64) ([]byte, bool) {
	info, err := s.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.fault(name, "missing")
		return nil, false
	case err != nil:
		s.fault(name, unreadable(err))
		return nil, false
	case info.IsDir():
		s.fault(name, "is a directory")
		return nil, false
	case !info.Mode().IsRegular():
		s.fault(name, kindOf(info.Mode()))
		return nil, false
	case octal(info.Mode()) != octal(FileMode):
		s.fault(name, wrongMode(octal(info.Mode()), octal(FileMode)))
	}
	data, err := s.readFile(name, info, limit)
	if err != nil {
		s.fault(name, unreadable(err))
		return nil, false
	}
	return data, true
}

func (s *scan) readFile(name string, info fs.FileInfo, limit int64) ([]byte, error) {
	f, err := openSame(s.root, name, info)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One byte more than the limit is enough for the reader to refuse it.
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// compare adds a fault for each path at which the folder is not as m says.
func (s *scan) compare(m *Manifest) {
	found := make(map[string]Entry, len(s.entries))
	for _, e := range s.entries {
		found[e.Path] = e
	}
	for _, want := range m.Files {
		got, ok := found[want.Path]
		delete(found, want.Path)
		if ok {
			s.compareEntry(got, want)
			continue
		}
		s.missing(want, found)
	}
	for p := range found {
		s.fault(p, "not in the manifest")
	}
}

func (s *scan) compareEntry(got, want Entry) {
	if got.SHA256 != want.SHA256 {
		s.fault(want.Path, "sha256 changed")
	}
	if got.Mode != want.Mode {
		s.fault(want.Path, wrongMode(got.Mode, want.Mode))
	}
}

// missing tells a path that is gone from one that another thing has taken.
func (s *scan) missing(want Entry, found map[string]Entry) {
	name := strings.TrimSuffix(want.Path, "/")
	if slices.ContainsFunc(s.faults, func(f fault) bool { return f.path == name }) {
		return // the scan has said what is there
	}
	other, what := name+"/", "is a directory"
	if want.isDir() {
		other, what = name, "is not a directory"
	}
	if _, ok := found[other]; ok {
		delete(found, other)
		s.fault(name, what)
		return
	}
	s.fault(want.Path, "missing")
}

func wrongMode(got, want string) string { return "mode " + got + ", want " + want }
