package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"strings"
)

// The field that the bishop walks, as in OpenSSH.
const (
	glyphWidth  = 17
	glyphHeight = 9
)

// glyphMarks shows how often a place was visited; the last two are start and end.
const glyphMarks = " .o+=*BOX@%&#/^SE"

// Glyph is the picture of a key that people compare at a glance: the drunken
// bishop's walk over the SHA-256 of the 32 key bytes, framed as ssh-keygen -lv
// frames it, rows joined by newlines.
func Glyph(public ed25519.PublicKey) string {
	digest := sha256.Sum256(public)
	return drawWalk(digest[:])
}

// drawWalk draws the bishop's walk over digest: two bits a step, low bits
// first; bit 0 moves right, bit 1 moves down; the walls stop him.
func drawWalk(digest []byte) string {
	var field [glyphHeight][glyphWidth]int
	x, y := glyphWidth/2, glyphHeight/2
	for _, b := range digest {
		for range 4 {
			x = min(max(x+int(b&1)*2-1, 0), glyphWidth-1)
			y = min(max(y+int(b>>1&1)*2-1, 0), glyphHeight-1)
			field[y][x] = min(field[y][x]+1, len(glyphMarks)-3)
			b >>= 2
		}
	}
	field[glyphHeight/2][glyphWidth/2] = len(glyphMarks) - 2
	field[y][x] = len(glyphMarks) - 1

	rows := []string{frame("[ED25519 256]")}
	for _, line := range field {
		row := make([]byte, glyphWidth)
		for i, visits := range line {
			row[i] = glyphMarks[visits]
		}
		rows = append(rows, "|"+string(row)+"|")
	}
	return strings.Join(append(rows, frame("[SHA256]")), "\n")
}

// frame centres a caption in the border; an odd place goes to the right.
func frame(caption string) string {
	left := (glyphWidth - len(caption)) / 2
	return "+" + strings.Repeat("-", left) + caption + strings.Repeat("-", glyphWidth-len(caption)-left) + "+"
}
