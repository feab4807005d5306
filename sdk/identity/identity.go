// Package identity says who a worker is and lets host and worker prove it to
// each other: the identity.json that the forge writes, the picture of a key
// that people compare, the host's certificate authority, and the TLS settings
// of both ends of the worker plane.
//
// A worker's certificate carries its own Ed25519 key, the one that signs its
// results, under the SPIFFE ID spiffe://<host id>/worker/<serial>. The host
// presents spiffe://<host id>/host. Each end accepts exactly one peer, over
// TLS 1.3 only. The package keeps no files: keys and certificates go in and out
// as bytes. Its functions are safe for concurrent use.
package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// File is the name of the identity in a worker's folder.
const File = "identity.json"

// maxSize bounds identity.json, in bytes.
const maxSize = 64 << 10

// Identity is what identity.json says: who the worker is and which keys of its
// host it trusts. Keys are base64 in JSON.
type Identity struct {
	WorkerName    string            `json:"worker_name"`
	WorkerType    string            `json:"worker_type"`
	TypeVersion   string            `json:"type_version"`
	WorkerSerial  string            `json:"worker_serial"`
	ModelNumber   string            `json:"model_number"`
	LedgerCode    string            `json:"ledger_code"`
	ClassCode     string            `json:"class_code"`
	Port          int               `json:"port"`
	PublicKey     ed25519.PublicKey `json:"public_key"`
	Glyph         string            `json:"glyph"`
	HostID        string            `json:"host_id"`
	StampKey      ed25519.PublicKey `json:"stamp_key"`
	ManifestKey   ed25519.PublicKey `json:"manifest_key"`
	CheckpointKey string            `json:"checkpoint_key"` // a verifier key of golang.org/x/mod/sumdb/note
	CreatedAt     time.Time         `json:"created_at"`
}

// Encode is the text of identity.json.
func (i *Identity) Encode() ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	out := *i
	out.CreatedAt = i.CreatedAt.UTC()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(&out); err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	return b.Bytes(), nil
}

// Decode reads identity.json. Keys that it does not know are ignored, so that
// an older worker can read what a newer host wrote.
func Decode(data []byte) (*Identity, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("decode identity: %d bytes, more than %d", len(data), maxSize)
	}
	i := &Identity{}
	if err := json.Unmarshal(data, i); err != nil {
		return nil, fmt.Errorf("decode identity: %w", err)
	}
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("decode identity: %w", err)
	}
	return i, nil
}

// check says whether the parts that the code relies on are there.
func (i *Identity) check() error {
	switch {
	case i.WorkerSerial == "":
		return errors.New("worker_serial is empty")
	case i.WorkerType == "":
		return errors.New("worker_type is empty")
	case i.HostID == "":
		return errors.New("host_id is empty")
	case len(i.PublicKey) != ed25519.PublicKeySize:
		return errors.New("public_key is not an Ed25519 key")
	case len(i.StampKey) != ed25519.PublicKeySize:
		return errors.New("stamp_key is not an Ed25519 key")
	case len(i.ManifestKey) != ed25519.PublicKeySize:
		return errors.New("manifest_key is not an Ed25519 key")
	case i.CheckpointKey == "":
		return errors.New("checkpoint_key is empty")
	}
	return nil
}
