package workertest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/vault"
)

// host has the keys of a throw-away host.
type host struct {
	id         string
	authority  *identity.Authority
	stamp      ed25519.PrivateKey
	manifest   ed25519.PrivateKey
	checkpoint note.Signer
	// checkpointKey is the text of the verifier of checkpoint.
	checkpointKey string
}

func newHost(t testing.TB) *host {
	t.Helper()
	ca := newKey(t)
	sum := sha256.Sum256(ca.Public().(ed25519.PublicKey))
	h := &host{id: hex.EncodeToString(sum[:8]), stamp: newKey(t), manifest: newKey(t)}
	var err error
	if h.authority, err = identity.NewAuthority(h.id, ca); err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	if h.checkpoint, err = vault.NoteSigner(vault.Origin(h.id), key); err != nil {
		t.Fatal(err)
	}
	if h.checkpointKey, _, err = vault.NoteVerifier(vault.Origin(h.id), key.Public().(ed25519.PublicKey)); err != nil {
		t.Fatal(err)
	}
	return h
}

// emptyRecord is the signed checkpoint of a record with nothing in it.
func (h *host) emptyRecord(t testing.TB) []byte {
	t.Helper()
	root := sha256.Sum256(nil)
	c := log.Checkpoint{Origin: vault.Origin(h.id), Hash: root[:]}
	signed, err := note.Sign(&note.Note{Text: string(c.Marshal())}, h.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
