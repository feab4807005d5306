// Package keyring keeps the host's own keys: one seed of 32 random bytes in
// keys/host.seed, from which each key is derived for one use, and the
// operator's client key in keys/operator.key.
//
// It promises that files are made once, whole, durable and with mode 0600, and
// never replaced; that a file which others can read, or which is not what it
// should be, is refused with the command that mends it; and that keys do not
// print. Only the first start of a data folder makes keys: later a missing one
// is an error, because a new seed would be another host.
//
// It does not keep workers' keys (they live in the workers' folders), hand out
// certificates, or protect against root.
package keyring

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/sdk/vault"
)

const (
	// SeedFile is the file of the host's seed, in the folder of keys.
	SeedFile = "host.seed"
	// OperatorFile is the file of the operator's client key.
	OperatorFile = "operator.key"

	seedSize = 32
)

// Keyring holds the derived keys of one host. It is immutable and safe for
// concurrent use.
type Keyring struct {
	dir        string
	hostID     string
	ca         Key
	manifest   Key
	stamp      Key
	ingress    Key
	signer     note.Signer
	checkpoint string // the verifier key of signer
}

// Config says where the keys are.
type Config struct {
	Dir   string // the folder of keys: keys/ of the data folder, mode 0700
	First bool   // the first start of the data folder: make what is missing
}

// Open reads the host's seed, or makes it at the first start, and derives the
// keys. A missing seed is a worker.ErrNotFound, a wrong one a worker.ErrCorrupt,
// one that others can read a worker.ErrRefused; each with a hint.
func Open(c Config) (*Keyring, error) {
	path := filepath.Join(c.Dir, SeedFile)
	if c.First {
		if err := createSeed(path); err != nil {
			return nil, fmt.Errorf("make host seed: %w", err)
		}
	}
	seed, err := readSeed(path)
	if err != nil {
		return nil, fmt.Errorf("read host seed: %w", err)
	}
	k, err := derive(seed)
	if err != nil {
		return nil, fmt.Errorf("derive host keys: %w", err)
	}
	k.dir = c.Dir
	return k, nil
}

// derive makes every key of the host from its seed: HKDF-SHA256 without salt,
// the use as info.
func derive(seed []byte) (*Keyring, error) {
	k := &Keyring{}
	var checkpoint Key
	for _, d := range []struct {
		use string
		key *Key
	}{
		{"dals ca v1", &k.ca},
		{"dals manifest v1", &k.manifest},
		{"dals stamp v1", &k.stamp},
		{"dals checkpoint v1", &checkpoint},
		{"dals ingress v1", &k.ingress},
	} {
		s, err := hkdf.Key(sha256.New, seed, nil, d.use, ed25519.SeedSize)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.use, err)
		}
		d.key.private = ed25519.NewKeyFromSeed(s)
	}
	id := sha256.Sum256(k.ca.Public())
	k.hostID = hex.EncodeToString(id[:8])
	origin := vault.Origin(k.hostID)
	var err error
	if k.signer, err = vault.NoteSigner(origin, checkpoint.private); err != nil {
		return nil, err
	}
	k.checkpoint, _, err = vault.NoteVerifier(origin, checkpoint.Public())
	return k, err
}

// HostID is the host's name: 16 hex digits of the SHA-256 of its CA key.
func (k *Keyring) HostID() string { return k.hostID }

// CA is the key that issues workers' certificates.
func (k *Keyring) CA() Key { return k.ca }

// Manifest is the key that signs workers' manifests and vault blocks.
func (k *Keyring) Manifest() Key { return k.manifest }

// Stamp is the key that signs delivery stamps.
func (k *Keyring) Stamp() Key { return k.stamp }

// Ingress is the key that signs the host's own envelopes, of what came in by
// workers' ports.
func (k *Keyring) Ingress() Key { return k.ingress }

// CheckpointSigner signs the record's checkpoints; its name is their origin.
func (k *Keyring) CheckpointSigner() note.Signer { return k.signer }

// CheckpointKey is the verifier key of CheckpointSigner, for note.NewVerifier.
func (k *Keyring) CheckpointKey() string { return k.checkpoint }

// Key is a private key that does not print. The zero Key signs nothing.
type Key struct{ private ed25519.PrivateKey }

// NewWorkerKey makes a key for a worker.
func NewWorkerKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make worker key: %w", err)
	}
	return Key{private}, nil
}

// Private is the key itself, for the function that signs.
func (k Key) Private() ed25519.PrivateKey { return k.private }

// Public is the public key, 32 bytes.
func (k Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// String is "[key]".
func (k Key) String() string { return "[key]" }

// Format writes "[key]" for every verb.
func (k Key) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(k.String())) }

// MarshalText writes "[key]", so that no JSON or log line carries a key.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
