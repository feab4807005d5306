package record

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
)

// sign makes the checkpoint of t: a C2SP tlog-checkpoint, whose origin is the
// name of the key. Ed25519 is deterministic, so one tree has one checkpoint.
func sign(t *tree, signer note.Signer) ([]byte, error) {
	root, err := t.root()
	if err != nil {
		return nil, fmt.Errorf("hash tree of %d: %w", t.size(), err)
	}
	body := log.Checkpoint{Origin: signer.Name(), Size: t.size(), Hash: root}.Marshal()
	signed, err := note.Sign(&note.Note{Text: string(body)}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return signed, nil
}

// claims are what a checkpoint says, whoever signed it.
func claims(signed []byte) (log.Checkpoint, error) {
	var c log.Checkpoint
	if _, err := c.Unmarshal(signed); err != nil {
		return c, fmt.Errorf("read checkpoint: %w", err)
	}
	return c, nil
}

// open checks the signature and the origin of a checkpoint, and that it has the
// one form in which this package writes it.
func open(signed []byte, verifier note.Verifier) (log.Checkpoint, error) {
	c, rest, n, err := log.ParseCheckpoint(signed, verifier.Name(), verifier)
	if err != nil {
		return log.Checkpoint{}, fmt.Errorf("verify checkpoint: %w", err)
	}
	// A note may carry lines and signatures of others, and base64 has spare
	// bits: what a signature does not cover could change unseen.
	sig, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64)
	if err != nil {
		return log.Checkpoint{}, fmt.Errorf("verify checkpoint: signature: %w", err)
	}
	form := fmt.Sprintf("%s\n— %s %s\n", n.Text, n.Sigs[0].Name, base64.StdEncoding.EncodeToString(sig))
	if len(rest) > 0 || string(signed) != form {
		return log.Checkpoint{}, errors.New("verify checkpoint: more in it than a log's checkpoint and its signature")
	}
	return *c, nil
}
