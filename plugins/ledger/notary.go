package main

import (
	"fmt"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dals-host/dals-host/sdk"
)

// notary signs checkpoints as the worker: origin and key name are its serial.
type notary struct {
	signer      note.Signer
	verifierKey string
}

func newNotary(w *sdk.Worker) (*notary, error) {
	signer, err := w.NoteSigner()
	if err != nil {
		return nil, err
	}
	key, err := note.NewEd25519VerifierKey(signer.Name(), w.Identity().PublicKey)
	if err != nil {
		return nil, fmt.Errorf("make verifier key: %w", err)
	}
	return &notary{signer: signer, verifierKey: key}, nil
}

// signed is a state of the log with the worker's signature.
type signed struct {
	tree
	Checkpoint  string `json:"checkpoint" jsonschema:"a signed note: origin, size, root"`
	VerifierKey string `json:"verifier_key" jsonschema:"the note's key, for golang.org/x/mod/sumdb/note; check it against the worker's public key"`
}

func (n *notary) sign(size int64, root tlog.Hash) (signed, error) {
	c := log.Checkpoint{Origin: n.signer.Name(), Size: uint64(size), Hash: root[:]}
	text, err := note.Sign(&note.Note{Text: string(c.Marshal())}, n.signer)
	if err != nil {
		return signed{}, fmt.Errorf("sign checkpoint: %w", err)
	}
	return signed{
		tree:        tree{Size: size, Root: root.String()},
		Checkpoint:  string(text),
		VerifierKey: n.verifierKey,
	}, nil
}

func hashTexts(hashes []tlog.Hash) []string {
	texts := make([]string, len(hashes))
	for i, h := range hashes {
		texts[i] = h.String()
	}
	return texts
}
