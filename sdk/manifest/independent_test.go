package manifest_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/nacl/sign"
)

// What follows checks a worker's folder by docs/formats/manifest.md alone: it
// calls nothing of package manifest. Where the two disagree on a published
// vector, the document is wrong or one of them is.

// reading is one independent look at a folder.
type reading struct {
	dir         string
	listed      map[string]map[string]any // the manifest's files, by path
	door        bool                      // the folder may have one
	differences []string
}

func (r *reading) say(path, what string, args ...any) {
	r.differences = append(r.differences, path+": "+fmt.Sprintf(what, args...))
}

// readIndependently gives the differences between a folder and its manifest.
func readIndependently(dir string, public *[32]byte) []string {
	r := &reading{dir: dir, listed: map[string]map[string]any{}}
	text, haveText := r.own("worker_manifest.json")
	signature, haveSignature := r.own("worker_manifest.sig")
	held := false
	r.door = true
	if haveText && haveSignature {
		signed := append(append(slices.Clone(signature), "dals.manifest.v1\x00"...), text...)
		_, ok := sign.Open(nil, signed, public)
		if held = ok && len(signature) == sign.Overhead; !held {
			r.say("worker_manifest.json", "not what this host signed in worker_manifest.sig")
		}
	}
	if held {
		m, err := readText(text)
		if err != nil {
			r.say("worker_manifest.json", "%v", err)
			held = false
		} else {
			r.door = m["format"] == json.Number("2")
			for _, file := range m["files"].([]any) {
				entry := file.(map[string]any)
				r.listed[entry["path"].(string)] = entry
			}
		}
	}
	r.walk("", held)
	for path := range r.listed {
		r.say(path, "missing")
	}
	slices.Sort(r.differences)
	return r.differences
}

func (r *reading) own(name string) ([]byte, bool) {
	info, err := os.Lstat(filepath.Join(r.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		r.say(name, "missing")
		return nil, false
	}
	if kind := kind(info.Mode()); kind != "" {
		r.say(name, "is a %s", kind)
		return nil, false
	}
	if mode := mode(info.Mode()); mode != "0440" {
		r.say(name, "mode %s, want 0440", mode)
	}
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	return text, err == nil && len(text) <= 1<<20
}

// walk looks at everything below a folder. What could never be listed counts
// also where the manifest itself does not hold.
func (r *reading) walk(below string, held bool) {
	names, _ := os.ReadDir(filepath.Join(r.dir, below))
	for _, name := range names {
		path := below + name.Name()
		info, err := os.Lstat(filepath.Join(r.dir, path))
		kind := kind(info.Mode())
		switch {
		case err != nil:
			r.say(path, "cannot be read: %v", err)
		case path == "worker_manifest.json" || path == "worker_manifest.sig":
		case kind == "directory" && (path == "state" || path == "run" || path == "logs" || r.door && path == "door"):
		case kind == "directory":
			if held {
				r.compare(path+"/", path, "is a directory", mode(info.Mode()), "")
			}
			r.walk(path+"/", held)
		case kind != "":
			delete(r.listed, path)
			delete(r.listed, path+"/")
			r.say(path, "is a %s", kind)
		case held:
			text, _ := os.ReadFile(filepath.Join(r.dir, path))
			sum := sha256.Sum256(text)
			r.compare(path, path+"/", "is not a directory", mode(info.Mode()), hex.EncodeToString(sum[:]))
		}
	}
}

// compare looks up what is there; other is how its place would be listed for the
// other kind of thing.
func (r *reading) compare(path, other, otherwise, mode, sum string) {
	want, ok := r.listed[path]
	if !ok {
		if _, ok := r.listed[other]; ok {
			delete(r.listed, other)
			r.say(strings.TrimSuffix(path, "/"), "%s", otherwise)
			return
		}
		r.say(path, "not in the manifest")
		return
	}
	delete(r.listed, path)
	if want["sha256"] != sum {
		r.say(path, "sha256 changed")
	}
	if want["mode"] != mode {
		r.say(path, "mode %s, want %s", mode, want["mode"])
	}
}

func kind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return ""
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeNamedPipe:
		return "pipe"
	case fs.ModeSocket:
		return "socket"
	}
	return "device"
}

func mode(m fs.FileMode) string {
	special := 0
	for bit, is := range map[int]bool{4: m&fs.ModeSetuid != 0, 2: m&fs.ModeSetgid != 0, 1: m&fs.ModeSticky != 0} {
		if is {
			special += bit
		}
	}
	return fmt.Sprintf("%d%03o", special, m.Perm())
}

// readText reads a manifest as a generic JSON value, checks each field, writes
// it in the one form and compares.
func readText(text []byte) (map[string]any, error) {
	if len(text) > 1<<20 {
		return nil, errors.New("too long")
	}
	var m map[string]any
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.UseNumber()
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	w := &form{}
	columns := []column{
		{"format", w.number},
		{"forge_version", w.text},
		{"worker_name", w.text},
		{"worker_type", w.text},
		{"type_version", w.text},
		{"worker_serial", w.text},
		{"model_number", w.text},
		{"ledger_code", w.text},
		{"class_code", w.text},
		{"port", w.number},
		{"plugin_sha256", w.text},
		{"modules", w.list([]column{{"path", w.text}, {"version", w.text}})},
		{"image_digest", w.text},
		{"public_key", w.key},
		{"glyph", w.text},
		{"host_id", w.text},
		{"created_at", w.time},
		{"files", w.list([]column{{"path", w.text}, {"mode", w.text}, {"size", w.number}, {"sha256", w.text}})},
	}
	if m["format"] == json.Number("2") {
		columns = slices.Insert(columns, len(columns)-1, column{"grants", w.texts})
	}
	w.object(m, "\n  ", columns)
	if w.err == nil && w.b.String()+"\n" != string(text) {
		w.err = errors.New("not in the one form")
	}
	if w.err == nil && (m["format"] != json.Number("1") && m["format"] != json.Number("2") || m["worker_serial"] == "" || m["host_id"] == "") {
		w.err = errors.New("format, worker_serial or host_id")
	}
	if w.err == nil {
		w.err = checkFiles(m["files"].([]any), m["format"] == json.Number("2"))
	}
	if grants, ok := m["grants"].([]any); ok && w.err == nil {
		w.err = checkGrants(grants)
	}
	return m, w.err
}

var (
	octalMode = regexp.MustCompile(`^[0-7]{4}$`)
	hexHash   = regexp.MustCompile(`^[0-9a-f]{64}$`)

	capability = regexp.MustCompile(`^[a-z]{1,32}(:[\x21-\x7e]{1,223})?$`)
)

func checkGrants(grants []any) error {
	last := ""
	for _, grant := range grants {
		text := grant.(string)
		if !capability.MatchString(text) || text <= last || len(grants) > 32 {
			return fmt.Errorf("grant %q", text)
		}
		last = text
	}
	if last == "" {
		return errors.New("no grants")
	}
	return nil
}

func checkFiles(files []any, door bool) error {
	last := ""
	for _, file := range files {
		entry := file.(map[string]any)
		path, mode, sum := entry["path"].(string), entry["mode"].(string), entry["sha256"].(string)
		size, _ := strconv.Atoi(string(entry["size"].(json.Number)))
		name, isDir := strings.CutSuffix(path, "/")
		for part := range strings.SplitSeq(name, "/") {
			if part == "" || part == "." || part == ".." {
				return fmt.Errorf("path %q", path)
			}
		}
		top, _, below := strings.Cut(path, "/")
		never := path == "worker_manifest.json" || path == "worker_manifest.sig" ||
			below && (top == "state" || top == "run" || top == "logs" || door && top == "door")
		unprintable := strings.ContainsFunc(path, func(c rune) bool { return !unicode.IsPrint(c) })
		form := isDir && size == 0 && sum == "" || !isDir && size >= 0 && size <= 16777216 && hexHash.MatchString(sum)
		if never || unprintable || !form || !octalMode.MatchString(mode) || path <= last || len(files) > 4096 {
			return fmt.Errorf("file %q", path)
		}
		last = path
	}
	return nil
}

// form writes JSON in the one form of a manifest.
type form struct {
	b   strings.Builder
	err error
}

// column is a key of an object and how its value is written; at is the line
// break before it.
type column struct {
	key   string
	write func(value any, at string)
}

func (f *form) object(m map[string]any, at string, columns []column) {
	f.b.WriteString("{")
	for i, c := range columns {
		if i > 0 {
			f.b.WriteString(",")
		}
		f.b.WriteString(at + `"` + c.key + `": `)
		c.write(m[c.key], at)
	}
	f.b.WriteString(at[:len(at)-2] + "}")
}

func (f *form) list(columns []column) func(any, string) {
	return func(value any, at string) {
		items, ok := value.([]any)
		if !ok {
			f.err = errors.New("not a list")
		}
		f.b.WriteString("[")
		for i, item := range items {
			m, ok := item.(map[string]any)
			if !ok {
				f.err = errors.New("not an object")
			}
			if i > 0 {
				f.b.WriteString(",")
			}
			f.b.WriteString(at + "  ")
			f.object(m, at+"    ", columns)
		}
		if len(items) > 0 {
			f.b.WriteString(at)
		}
		f.b.WriteString("]")
	}
}

func (f *form) texts(value any, at string) {
	items, ok := value.([]any)
	if !ok {
		f.err = errors.New("not a list")
	}
	f.b.WriteString("[")
	for i, item := range items {
		if i > 0 {
			f.b.WriteString(",")
		}
		f.b.WriteString(at + "  ")
		f.text(item, at)
	}
	f.b.WriteString(at + "]")
}

func (f *form) number(value any, _ string) {
	number, ok := value.(json.Number)
	if n, err := strconv.Atoi(string(number)); !ok || err != nil || strconv.Itoa(n) != string(number) {
		f.err = fmt.Errorf("%v is not a whole number", value)
	}
	f.b.WriteString(string(number))
}

func (f *form) text(value any, _ string) {
	text, ok := value.(string)
	if !ok || !utf8.ValidString(text) {
		f.err = fmt.Errorf("%v is not text", value)
	}
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\u2028': `\u2028`, '\u2029': `\u2029`}
	f.b.WriteString(`"`)
	for _, c := range text {
		escape, ok := short[c]
		switch {
		case ok:
			f.b.WriteString(escape)
		case c < ' ':
			fmt.Fprintf(&f.b, `\u%04x`, c)
		default:
			f.b.WriteRune(c)
		}
	}
	f.b.WriteString(`"`)
}

func (f *form) key(value any, at string) {
	text, _ := value.(string)
	if key, err := base64.StdEncoding.Strict().DecodeString(text); err != nil || len(key) != 32 {
		f.err = fmt.Errorf("%v is not a key", value)
	}
	f.text(value, at)
}

func (f *form) time(value any, at string) {
	text, _ := value.(string)
	if t, err := time.Parse(time.RFC3339Nano, text); err != nil || t.UTC().Format(time.RFC3339Nano) != text {
		f.err = fmt.Errorf("%v is not a time", value)
	}
	f.text(value, at)
}
