// Package manifest makes and checks worker_manifest.json: the signed list of
// every immutable file of a worker's folder, and of what the worker was made
// from. The forge scans and signs; host and worker check, and are told every
// difference by name.
//
// A folder is read through an os.Root only, links are never followed, and
// reading is bounded, so that a folder which somebody else wrote can be checked
// safely. The package keeps no state; its functions are safe for concurrent
// use. It does not look at owners, nor at the folder's own mode, nor into
// state, run and logs, which change while a worker lives.
package manifest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/sdk/proof"
)

// The two files of a manifest, at the top of a worker's folder. Both have the
// mode FileMode.
const (
	File          = "worker_manifest.json"
	SignatureFile = "worker_manifest.sig"
	FileMode      = 0o440
)

// The formats that this package makes and reads. A manifest has the second if its
// worker was granted something: its folder then may have a door, DoorDir, which
// changes with every host and is not listed.
const (
	Format        = 1
	FormatGranted = 2
)

// DoorDir is the folder through which a worker reaches its host.
const DoorDir = "door"

// MaxSize bounds an encoded manifest, in bytes.
const MaxSize = 1 << 20

// ErrBadSignature says that a manifest was not signed, as it stands, by the key.
var ErrBadSignature = errors.New("signature does not hold")

// Manifest says what a worker is, what it was made from, and which files it has.
type Manifest struct {
	Format       int               `json:"format"`
	ForgeVersion string            `json:"forge_version"`
	WorkerName   string            `json:"worker_name"`
	WorkerType   string            `json:"worker_type"`
	TypeVersion  string            `json:"type_version"`
	WorkerSerial string            `json:"worker_serial"`
	ModelNumber  string            `json:"model_number"`
	LedgerCode   string            `json:"ledger_code"`
	ClassCode    string            `json:"class_code"`
	Port         int               `json:"port"`
	PluginDigest string            `json:"plugin_sha256"` // hex
	Modules      []Module          `json:"modules"`
	ImageDigest  string            `json:"image_digest"` // empty without a container
	PublicKey    ed25519.PublicKey `json:"public_key"`   // base64
	Glyph        string            `json:"glyph"`
	HostID       string            `json:"host_id"`
	CreatedAt    time.Time         `json:"created_at"`
	Grants       []string          `json:"grants,omitempty"` // what the worker may do beyond its folder, sorted
	Files        []Entry           `json:"files"`
}

// Module is one Go module that the plugin was built from.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

// FormatOf is the format of the manifest of a worker with these grants.
func FormatOf(grants []string) int {
	if len(grants) > 0 {
		return FormatGranted
	}
	return Format
}

// Encode is the text of worker_manifest.json: the same manifest always gives
// the same bytes. What Decode would refuse is an error.
func (m *Manifest) Encode() ([]byte, error) {
	encoded, err := m.encode()
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if _, err := Decode(encoded); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return encoded, nil
}

func (m *Manifest) encode() ([]byte, error) {
	out := *m
	out.CreatedAt = m.CreatedAt.UTC()
	out.Modules = append([]Module{}, m.Modules...) // an empty list is [], not null
	out.Files = append([]Entry{}, m.Files...)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(&out); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Decode reads worker_manifest.json as hostile text. It accepts exactly what
// Encode writes: one byte form for each manifest, so no key twice, none
// unknown, no other spelling, files sorted by path and named once.
func Decode(data []byte) (*Manifest, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("decode manifest: %d bytes, more than %d", len(data), MaxSize)
	}
	m := &Manifest{}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if again, err := m.encode(); err != nil || !bytes.Equal(again, data) {
		return nil, errors.New("decode manifest: not in the form that a forge writes")
	}
	return m, nil
}

func (m *Manifest) check() error {
	switch {
	case m.Format != FormatOf(m.Grants):
		return fmt.Errorf("format %d is not %d", m.Format, FormatOf(m.Grants))
	case m.WorkerSerial == "":
		return errors.New("worker_serial is empty")
	case m.HostID == "":
		return errors.New("host_id is empty")
	case len(m.PublicKey) != ed25519.PublicKeySize:
		return errors.New("public_key is not an Ed25519 key")
	case len(m.Files) > maxEntries:
		return fmt.Errorf("%d files, more than %d", len(m.Files), maxEntries)
	case len(m.Grants) > maxGrants:
		return fmt.Errorf("%d grants, more than %d", len(m.Grants), maxGrants)
	}
	for i, g := range m.Grants {
		if !isGrant(g) || i > 0 && g <= m.Grants[i-1] {
			return fmt.Errorf("grant %.80q is no capability, out of order or twice", g)
		}
	}
	for i, e := range m.Files {
		if err := e.check(m.Format); err != nil {
			return err
		}
		if i > 0 && e.Path <= m.Files[i-1].Path {
			return fmt.Errorf("file %q is out of order or twice", e.Path)
		}
	}
	return nil
}

// Sign signs an encoded manifest with the host's manifest key: the content of
// worker_manifest.sig.
func Sign(key ed25519.PrivateKey, encoded []byte) []byte {
	return proof.Sign(proof.Manifest, key, encoded)
}

// Verify says whether public's owner signed encoded. The error wraps
// ErrBadSignature.
func Verify(public ed25519.PublicKey, encoded, signature []byte) error {
	if !proof.Verify(proof.Manifest, public, encoded, signature) {
		return fmt.Errorf("verify manifest: %w", ErrBadSignature)
	}
	return nil
}
