package vault

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// algEd25519 begins every encoded key of a note.
const algEd25519 = 1

// Origin names the log of a host: the first line of its checkpoints, and the
// name of the key that signs them.
func Origin(hostID string) string { return "dals." + hostID + "/record" }

// NoteSigner makes the signer of notes that sign as name. A name has no white
// space and no '+'.
func NoteSigner(name string, key ed25519.PrivateKey) (note.Signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("make note signer: not an Ed25519 private key")
	}
	verifierKey, _, err := NoteVerifier(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	hash := strings.Split(verifierKey, "+")[1]
	secret := base64.StdEncoding.EncodeToString(append([]byte{algEd25519}, key.Seed()...))
	signer, err := note.NewSigner("PRIVATE+KEY+" + name + "+" + hash + "+" + secret)
	if err != nil {
		return nil, fmt.Errorf("make note signer: %w", err)
	}
	return signer, nil
}

// NoteVerifier makes the verifier of notes that are signed as name, and the
// text that carries it: a verifier key of golang.org/x/mod/sumdb/note.
func NoteVerifier(name string, public ed25519.PublicKey) (verifierKey string, verifier note.Verifier, err error) {
	if verifierKey, err = note.NewEd25519VerifierKey(name, public); err != nil {
		return "", nil, fmt.Errorf("make note verifier: %w", err)
	}
	if verifier, err = note.NewVerifier(verifierKey); err != nil {
		return "", nil, fmt.Errorf("make note verifier: name %q: %w", name, err)
	}
	return verifierKey, verifier, nil
}
