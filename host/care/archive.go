package care

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// Format is the number of the backup format that this package makes and reads.
const Format = 1

// The parts of a backup, in this order.
const (
	partHeader     = "backup.json"
	partSignature  = "backup.sig"
	partCheckpoint = "checkpoint"
	partRegistry   = "registry.db.gz"
	partKeys       = "keys.age"
	partStore      = "store/"   // store/<digest>.gz
	partWorkers    = "workers/" // workers/<serial>/<path>
	partSeal       = "seal"
)

// What a backup may hold, so that a reader is never asked for more.
const (
	maxHeader = 64 << 20
	maxParts  = 1 << 20
	maxPart   = 1 << 40
)

// Header says what is in a backup.
type Header struct {
	Format         int       `json:"format"`
	HostID         string    `json:"host_id"`
	HostVersion    string    `json:"host_version"`
	CreatedAt      time.Time `json:"created_at"`
	Root           bool      `json:"root"`            // the host ran as root: workers have uids of their own
	Entries        uint64    `json:"entries"`         // of the record, in the registry
	CheckpointSize uint64    `json:"checkpoint_size"` // entries under the published checkpoint
	Keys           bool      `json:"keys"`            // keys are in it, encrypted
	Workers        int       `json:"workers"`         // whose files are in it
	Missing        []Missing `json:"missing"`         // workers whose files could not be had
	Parts          []Part    `json:"parts"`
}

// Missing is a worker of which a backup has the registry's row and nothing else.
type Missing struct {
	WorkerSerial worker.Serial `json:"worker_serial"`
	WorkerName   string        `json:"worker_name"`
	Reason       string        `json:"reason"`
}

// Part is one file in a backup, as it is stored there.
type Part struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

var (
	storeForm  = regexp.MustCompile(`^store/[0-9a-f]{64}\.gz$`)
	sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)
	hostIDForm = regexp.MustCompile(`^[0-9a-f]{16}$`)
)

// encode is the text of backup.json. What decodeHeader would refuse is an error.
func (h *Header) encode() ([]byte, error) {
	h.Missing, h.Parts = append([]Missing{}, h.Missing...), append([]Part{}, h.Parts...)
	h.CreatedAt = h.CreatedAt.UTC().Truncate(time.Millisecond)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(h); err != nil {
		return nil, err
	}
	if _, err := decodeHeader(b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decodeHeader reads backup.json as hostile text.
func decodeHeader(text []byte) (*Header, error) {
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &format); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", partHeader, worker.ErrCorrupt, err)
	}
	if format.Format != Format {
		return nil, worker.Hint(fmt.Errorf("%s: format %d, this dals-host knows %d: %w", partHeader, format.Format, Format, worker.ErrInvalid),
			"use the dals-host that made it, or a newer one")
	}
	h := &Header{}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(h)
	if err == nil && dec.More() {
		err = errors.New("text after the end")
	}
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", partHeader, worker.ErrCorrupt, err)
	}
	return h, nil
}

func (h *Header) check() error {
	if !hostIDForm.MatchString(h.HostID) {
		return fmt.Errorf("host_id %.40q", h.HostID)
	}
	if len(h.Parts) > maxParts {
		return fmt.Errorf("%d parts, more than %d", len(h.Parts), maxParts)
	}
	seen := map[string]bool{}
	for _, p := range h.Parts {
		switch {
		case !isPart(p.Name):
			return fmt.Errorf("part %.80q is none that a backup has", p.Name)
		case seen[p.Name]:
			return fmt.Errorf("part %.80q is there twice", p.Name)
		case p.Size < 0 || p.Size > maxPart:
			return fmt.Errorf("part %.80q has %d bytes", p.Name, p.Size)
		case !sha256Form.MatchString(p.SHA256):
			return fmt.Errorf("part %.80q has no SHA-256", p.Name)
		}
		seen[p.Name] = true
	}
	for _, name := range []string{partCheckpoint, partRegistry} {
		if !seen[name] {
			return fmt.Errorf("part %s is missing", name)
		}
	}
	if seen[partKeys] != h.Keys {
		return fmt.Errorf("part %s: there is %t, told is %t", partKeys, seen[partKeys], h.Keys)
	}
	for _, m := range h.Missing {
		if _, err := worker.ParseSerial(string(m.WorkerSerial)); err != nil {
			return err
		}
	}
	return nil
}

// isPart says whether a name is one that a backup can have. No such name leads
// out of a folder.
func isPart(name string) bool {
	switch name {
	case partCheckpoint, partRegistry, partKeys:
		return true
	}
	if storeForm.MatchString(name) {
		return true
	}
	_, _, ok := workerFile(name)
	return ok
}

// workerFile takes the name of a part that is a worker's file apart.
func workerFile(name string) (serial worker.Serial, file string, ok bool) {
	rest, ok := strings.CutPrefix(name, partWorkers)
	if !ok {
		return "", "", false
	}
	text, file, ok := strings.Cut(rest, "/")
	if !ok || !isBelow(file) {
		return "", "", false
	}
	serial, err := worker.ParseSerial(text)
	return serial, file, err == nil
}

// isBelow says whether a slash-separated path is plain and stays below where it
// begins.
func isBelow(name string) bool {
	return name != "" && len(name) <= 200 && path.Clean("/"+name) == "/"+name && name != "." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == '\\' })
}

// archiveWriter writes the tar of a backup, and hashes it for the seal.
type archiveWriter struct {
	tar  *tar.Writer
	hash hash.Hash
	at   time.Time
}

func newArchiveWriter(w io.Writer, at time.Time) *archiveWriter {
	h := sha256.New()
	return &archiveWriter{tar: tar.NewWriter(io.MultiWriter(w, h)), hash: h, at: at.Truncate(time.Second)}
}

func (w *archiveWriter) add(name string, size int64, r io.Reader) error {
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size, ModTime: w.at, Format: tar.FormatUSTAR})
	if err == nil {
		_, err = io.Copy(w.tar, r)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// seal ends the archive with the hash of all of it, the seal's own header
// included: a byte that no part accounts for cannot change unseen.
func (w *archiveWriter) seal() error {
	const size = 2 * sha256.Size
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: partSeal, Mode: 0o600, Size: size, ModTime: w.at, Format: tar.FormatUSTAR})
	if err == nil {
		_, err = io.WriteString(w.tar, hex.EncodeToString(w.hash.Sum(nil)))
	}
	if err = errors.Join(err, w.tar.Close()); err != nil {
		return fmt.Errorf("write %s: %w", partSeal, err)
	}
	return nil
}

// readArchive reads a backup to its end and checks every byte of it. visit is
// given each part as it comes, its hash not yet checked; what it leaves is read
// for it. header, signature and the parts that visit saw are to be trusted only
// once readArchive has returned without an error.
func readArchive(r io.Reader, visit func(h *Header, p Part, r io.Reader) error) (h *Header, encoded, signature []byte, err error) {
	a := &archiveReader{raw: r, hash: sha256.New()}
	a.tar = tar.NewReader(io.TeeReader(r, a.hash))
	if encoded, err = a.small(partHeader, maxHeader); err != nil {
		return nil, nil, nil, err
	}
	if h, err = decodeHeader(encoded); err != nil {
		return nil, nil, nil, err
	}
	if signature, err = a.small(partSignature, 1<<10); err != nil {
		return nil, nil, nil, err
	}
	for _, p := range h.Parts {
		if err := a.part(h, p, visit); err != nil {
			return nil, nil, nil, err
		}
	}
	return h, encoded, signature, a.end()
}

type archiveReader struct {
	raw  io.Reader
	hash hash.Hash
	tar  *tar.Reader
}

// next goes on to the entry that is due.
func (a *archiveReader) next(name string) (size int64, err error) {
	t, err := a.tar.Next()
	if err != nil {
		return 0, damaged(name, err)
	}
	if t.Name != name || t.Typeflag != tar.TypeReg || t.Format != tar.FormatUSTAR {
		return 0, damaged(name, fmt.Errorf("%.80q (type %q) is in its place", t.Name, t.Typeflag))
	}
	return t.Size, nil
}

func damaged(name string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the file ends there")
	}
	return worker.Hint(fmt.Errorf("%s: %w: %w", name, worker.ErrCorrupt, err), "the backup was changed or cut short: use another copy")
}

func (a *archiveReader) small(name string, limit int64) ([]byte, error) {
	size, err := a.next(name)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, damaged(name, fmt.Errorf("%d bytes, more than %d", size, limit))
	}
	data, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, damaged(name, err)
	}
	return data, nil
}

func (a *archiveReader) part(h *Header, p Part, visit func(*Header, Part, io.Reader) error) error {
	size, err := a.next(p.Name)
	if err != nil {
		return err
	}
	if size != p.Size {
		return damaged(p.Name, fmt.Errorf("%d bytes, want %d", size, p.Size))
	}
	sum := sha256.New()
	in := &partReader{r: io.TeeReader(a.tar, sum)}
	visited := visit(h, p, in)
	if _, err := io.Copy(io.Discard, in); err != nil {
		return damaged(p.Name, err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != p.SHA256 {
		return damaged(p.Name, errors.New("not the bytes that were backed up"))
	}
	if visited != nil {
		return fmt.Errorf("%s: %w", p.Name, visited)
	}
	return nil
}

// partReader hands out a part and holds on to the error that ended it, so that
// what was done with the part cannot hide it.
type partReader struct {
	r   io.Reader
	err error
}

func (p *partReader) Read(b []byte) (n int, err error) {
	if p.err == nil {
		n, p.err = p.r.Read(b)
	}
	return n, p.err
}

// end checks the seal and that nothing follows it.
func (a *archiveReader) end() error {
	size, err := a.next(partSeal)
	if err != nil {
		return err
	}
	sum := hex.EncodeToString(a.hash.Sum(nil))
	said, err := io.ReadAll(io.LimitReader(a.tar, int64(len(sum))))
	if err != nil {
		return damaged(partSeal, err)
	}
	if size != int64(len(sum)) || string(said) != sum {
		return damaged(partSeal, errors.New("a byte between the parts was changed"))
	}
	// What is left of the seal's block, and the two blocks that end a tar.
	const block = 512
	rest, err := io.ReadAll(io.LimitReader(a.raw, 4*block))
	if err != nil {
		return damaged(partSeal, err)
	}
	if len(rest) != block-len(sum)+2*block || slices.ContainsFunc(rest, func(b byte) bool { return b != 0 }) {
		return damaged(partSeal, errors.New("more or less follows it than the end of a tar"))
	}
	return nil
}

// Inspect reads a backup to its end and checks that every byte of it is as it
// was written. That its host wrote it, only Restore can say.
func Inspect(r io.Reader) (*Header, error) {
	h, _, _, err := readArchive(r, func(*Header, Part, io.Reader) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	return h, nil
}
