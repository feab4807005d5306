package catalog

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxReason bounds a reason in runes.
const maxReason = 400

// oneLine makes somebody else's text safe to show: no control or formatting
// characters (they could forge a terminal's output), white space as single
// spaces, at most limit runes.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit]) + "…"
	}
	return s
}
