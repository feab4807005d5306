package capability

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// PlaceDir is where a worker's container has all its mounts.
const PlaceDir = "/mnt/"

// Folder is a folder of the host's machine as it is granted. A grant of it is
// written mount:PLACE=SOURCE[:ro]#INODE.BORN, with all of SOURCE but letters,
// digits and -._~/+@, percent-encoded.
type Folder struct {
	Source   string // its path, absolute and clean
	ReadOnly bool
	// Inode and Born tell it from another folder that has taken its path, or its
	// path's mount point: its number in its file system, and the second of its
	// birth, 0 where that file system does not keep it (stat -c %i.%W).
	Inode uint64
	Born  int64
}

// maxMount keeps a grant inside of what a manifest takes.
const maxMount = 223

// maxPlace bounds the name of a place, in bytes.
const maxPlace = 32

var (
	placeForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]*$`)
	errMountForm = errors.New("write it as mount:/mnt/NAME, as in mount:/mnt/photos")
)

func isPlace(place string) bool {
	name, ok := strings.CutPrefix(place, PlaceDir)
	return ok && len(name) <= maxPlace && placeForm.MatchString(name)
}

// Asked is the capability as a type asks for it.
func (c Capability) Asked() Capability {
	c.Folder = Folder{}
	return c
}

// Asks says whether a type that asks for these asks for what is granted.
func Asks(asked []string, grant string) bool {
	c, err := Parse(grant)
	return err == nil && slices.Contains(asked, c.Asked().String())
}

// NotGranted are those of the asked that the grants do not give.
func NotGranted(asked, grants []string) []string {
	return slices.DeleteFunc(slices.Clone(asked), func(a string) bool {
		return slices.ContainsFunc(grants, func(g string) bool { return Asks([]string{a}, g) })
	})
}

// ParseMount reads SOURCE:PLACE[:ro], as a mount is granted. What only the host's
// machine knows of the folder stays zero.
func ParseMount(text string) (Capability, error) {
	rest, readOnly := strings.CutSuffix(text, ":ro")
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return Capability{}, fmt.Errorf("mount %.300q: write it as SOURCE:/mnt/NAME or SOURCE:/mnt/NAME:ro", text)
	}
	c := Capability{Kind: Mount, Name: rest[i+1:], Folder: Folder{Source: rest[:i], ReadOnly: readOnly}}
	if !isPlace(c.Name) {
		return Capability{}, fmt.Errorf("mount %.300q: its place %.80q is not /mnt/NAME, with a NAME of at most %d lower-case letters, digits, '_', '-' and '.'", text, c.Name, maxPlace)
	}
	if err := c.Folder.check(); err != nil {
		return Capability{}, fmt.Errorf("mount %.300q: %w", text, err)
	}
	return c, nil
}

// parseMount reads what stands behind the kind.
func parseMount(rest string) (Capability, error) {
	place, folder, granted := strings.Cut(rest, "=")
	c := Capability{Kind: Mount, Name: place}
	if !isPlace(place) {
		return c, errMountForm
	}
	if !granted {
		return c, nil
	}
	var err error
	if c.Folder, err = parseFolder(folder); err != nil {
		return c, err
	}
	return c, cmp.Or(c.Folder.check(), c.Folder.checkSize(place))
}

// parseFolder reads SOURCE[:ro]#INODE.BORN.
func parseFolder(text string) (f Folder, err error) {
	i := strings.LastIndexByte(text, '#')
	if i < 0 {
		return f, errors.New("the folder has no form")
	}
	inode, born, _ := strings.Cut(text[i+1:], ".")
	f.Inode, err = strconv.ParseUint(inode, 10, 64)
	seconds, bornErr := strconv.ParseUint(born, 10, 63)
	f.Born = int64(seconds)
	text, f.ReadOnly = strings.CutSuffix(text[:i], ":ro")
	source, sourceErr := url.PathUnescape(text)
	f.Source = source
	if err := errors.Join(err, bornErr, sourceErr); err != nil {
		return f, fmt.Errorf("the folder has no form: %w", err)
	}
	return f, nil
}

// check says whether the folder's path has its form.
func (f Folder) check() error {
	switch {
	case !path.IsAbs(f.Source):
		return fmt.Errorf("the folder %.80q is not an absolute path", f.Source)
	case path.Clean(f.Source) != f.Source:
		return fmt.Errorf("write the folder as %.300s", path.Clean(f.Source))
	case !utf8.ValidString(f.Source) || strings.ContainsFunc(f.Source, unicode.IsControl):
		return errors.New("the folder's path is not one line of text")
	}
	return nil
}

// checkSize says whether a grant of the folder stays in its bound.
func (f Folder) checkSize(place string) error {
	if n := len(place) + len(f.suffix()); n > maxMount {
		return fmt.Errorf("place and folder have %d bytes as a grant writes them, more than %d: give a shorter path", n, maxMount)
	}
	return nil
}

// suffix is the folder as a grant has it; of none it is empty.
func (f Folder) suffix() string {
	if f == (Folder{}) {
		return ""
	}
	ro := ""
	if f.ReadOnly {
		ro = ":ro"
	}
	return fmt.Sprintf("=%s%s#%d.%d", escape(f.Source), ro, f.Inode, f.Born)
}

// escape leaves nothing in a path that means something in a grant, or would not
// be one word.
func escape(source string) string {
	var b strings.Builder
	for _, c := range []byte(source) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~/+@,", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
