package broker

import (
	"strings"
	"unicode"
)

// maxText bounds a worker's words in logs, entries and answers, in characters.
const maxText = 500

// clean makes a worker's words fit to be shown and recorded: one line of valid,
// printable text that is not too long.
func clean(s string) string {
	// A character has at most 4 bytes: what is beyond is never shown.
	s = s[:min(len(s), 4*maxText)]
	runes := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "")))
	return strings.TrimSpace(string(runes[:min(len(runes), maxText)]))
}
