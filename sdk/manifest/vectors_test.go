package manifest_test

import (
	stdcmp "cmp"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/proof"
)

// published reads a file of the vectors.
func published[T any](t testing.TB, name string) (v T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.DisallowUnknownFields()
	must(t, dec.Decode(&v))
	return v
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	must(t, err)
	return b
}

// planted is an entry of testdata/tree.json; a folder has no text.
type planted struct {
	Path string
	Mode string
	Text string
}

// mutation is an entry of testdata/mutations.json: what is done to the tree, and
// what a checker then says.
type mutation struct {
	Name        string
	Steps       []mutationStep
	Differences []string
}

type mutationStep struct {
	Op     string
	Path   string
	To     string
	Mode   string
	Text   string
	Seed   string // of the key to sign with
	Domain string // to sign in, if not the manifest's
}

// chmod sets a mode that is written as chmod takes it.
func chmod(t testing.TB, path, mode string) {
	t.Helper()
	bits, err := strconv.ParseUint(mode, 8, 12)
	must(t, err)
	must(t, syscall.Chmod(path, uint32(bits)))
}

// plant makes the published tree with its signed manifest.
func plant(t testing.TB) (dir string, public ed25519.PublicKey) {
	t.Helper()
	dir = t.TempDir()
	v := published[vector](t, "vector.json")
	text, err := os.ReadFile("testdata/worker_manifest.json")
	must(t, err)
	tree := append(published[[]planted](t, "tree.json"),
		planted{manifest.File, "0440", string(text)}, planted{manifest.SignatureFile, "0440", string(unhex(t, v.Signature))})
	for _, p := range tree {
		at := filepath.Join(dir, p.Path)
		if strings.HasSuffix(p.Path, "/") {
			must(t, os.Mkdir(at, 0o700))
		} else {
			must(t, os.WriteFile(at, []byte(p.Text), 0o600))
		}
		chmod(t, at, p.Mode)
	}
	return dir, unhex(t, v.Public)
}

func (s mutationStep) do(t testing.TB, dir string) {
	t.Helper()
	at := filepath.Join(dir, s.Path)
	switch s.Op {
	case "write":
		put(t, at, s.Text, 0o600)
		chmod(t, at, s.Mode)
	case "append":
		text, err := os.ReadFile(at)
		must(t, err)
		put(t, at, string(text)+s.Text, 0o440)
	case "sign":
		text, err := os.ReadFile(filepath.Join(dir, manifest.File))
		must(t, err)
		domain := proof.Manifest
		if s.Domain != "" {
			domain = proof.Domain(s.Domain)
		}
		key := ed25519.NewKeyFromSeed(unhex(t, s.Seed))
		put(t, filepath.Join(dir, manifest.SignatureFile), string(proof.Sign(domain, key, text)), 0o440)
	case "remove":
		must(t, os.RemoveAll(at))
	case "rename":
		must(t, os.Rename(at, filepath.Join(dir, s.To)))
	case "symlink":
		must(t, os.Symlink(s.To, at))
	case "mkdir":
		must(t, os.Mkdir(at, 0o700))
		chmod(t, at, s.Mode)
	case "fifo":
		must(t, syscall.Mkfifo(at, 0o600))
		chmod(t, at, s.Mode)
	case "chmod":
		chmod(t, at, s.Mode)
	default:
		t.Fatalf("no such step: %+v", s)
	}
}

// Both this package and a reader that was written from the document alone say of
// each published mutation what is published of it.
func TestPublishedMutations(t *testing.T) {
	t.Parallel()
	for _, m := range published[[]mutation](t, "mutations.json") {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			dir, public := plant(t)
			for _, s := range m.Steps {
				s.do(t, dir)
			}
			var said []string
			_, err := manifest.Check(openRoot(t, dir), public)
			if fault, ok := errors.AsType[*manifest.Fault](err); ok {
				said = fault.Differences
			} else {
				must(t, err)
			}
			if diff := cmp.Diff(append([]string{}, m.Differences...), append([]string{}, said...)); diff != "" {
				t.Errorf("this package:\n%s", diff)
			}
			said = readIndependently(dir, (*[32]byte)(public))
			if diff := cmp.Diff(append([]string{}, m.Differences...), append([]string{}, said...)); diff != "" {
				t.Errorf("the independent reader:\n%s", diff)
			}
		})
	}
}

// No published malformed text is a manifest, however well it is signed.
func TestPublishedMalformedTexts(t *testing.T) {
	t.Parallel()
	texts := map[string][]byte{}
	for _, name := range []string{"worker_manifest.json", "granted_manifest.json"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		must(t, err)
		if _, err := manifest.Decode(text); err != nil {
			t.Errorf("this package refuses the published %s: %v", name, err)
		}
		if _, err := readText(text); err != nil {
			t.Errorf("the independent reader refuses the published %s: %v", name, err)
		}
		texts[name] = text
	}
	for _, edit := range published[[]struct{ Name, Of, Was, Is string }](t, "malformed.json") {
		text := texts[stdcmp.Or(edit.Of, "worker_manifest.json")]
		bad := strings.Replace(string(text), edit.Was, edit.Is, 1)
		if bad == string(text) {
			t.Fatalf("%s: the edit changes nothing", edit.Name)
		}
		if _, err := manifest.Decode([]byte(bad)); err == nil {
			t.Errorf("%s: this package reads it", edit.Name)
		}
		if _, err := readText([]byte(bad)); err == nil {
			t.Errorf("%s: the independent reader reads it", edit.Name)
		}
	}
}

// The published tree is the one that the published manifest was made from.
func TestPublishedTree(t *testing.T) {
	t.Parallel()
	dir, _ := plant(t)
	scanned, err := manifest.Scan(openRoot(t, dir))
	must(t, err)
	text, err := os.ReadFile("testdata/worker_manifest.json")
	must(t, err)
	m, err := manifest.Decode(text)
	must(t, err)
	if diff := cmp.Diff(m.Files, scanned); diff != "" {
		t.Error(diff)
	}
}
