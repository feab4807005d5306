package sdk

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// noteSigner signs the text of notes alone. Everything else that a worker's key
// signs has a zero byte near its start (a domain's end, TLS's padding), which
// text never has, so no note can pass for an envelope or a handshake.
type noteSigner struct {
	note.Signer
}

var _ note.Signer = noteSigner{}

// Sign signs text, or refuses what is none.
func (s noteSigner) Sign(text []byte) ([]byte, error) {
	isControl := func(r rune) bool { return r != '\n' && unicode.IsControl(r) }
	if !utf8.Valid(text) || strings.ContainsFunc(string(text), isControl) {
		return nil, errors.New("sign note: not the text of a note")
	}
	return s.Signer.Sign(text)
}
