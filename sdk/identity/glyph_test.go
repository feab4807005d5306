package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ssh-keygen hashes the key as it stands in an .pub file, Glyph the bare key:
// the walk and its frame must be the same over the same digest.
func TestWalkIsThatOfSSHKeygen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 20 {
		file := filepath.Join(dir, string(rune('a'+i)))
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", file).CombinedOutput(); err != nil {
			t.Fatalf("make a key (this test needs ssh-keygen, Debian package openssh-client): %v\n%s", err, out)
		}
		public, err := os.ReadFile(file + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		blob, err := base64.StdEncoding.DecodeString(strings.Fields(string(public))[1])
		if err != nil {
			t.Fatal(err)
		}
		picture, err := exec.CommandContext(t.Context(), "ssh-keygen", "-l", "-v", "-E", "sha256", "-f", file+".pub").Output()
		if err != nil {
			t.Fatal(err)
		}
		_, want, _ := strings.Cut(strings.TrimSpace(string(picture)), "\n")
		digest := sha256.Sum256(blob)
		if got := drawWalk(digest[:]); got != want {
			t.Fatalf("drawn\n%s\nssh-keygen draws\n%s", got, want)
		}
	}
}

func TestGlyph(t *testing.T) {
	t.Parallel()
	want := strings.TrimPrefix(`
+--[ED25519 256]--+
|        .o...o   |
|    .     o o +  |
|   . ... + o = . |
|    E =oB * o .  |
|     =.@S+ = o   |
|    . Oo+.+ = .  |
|     +. ++ o o   |
|    .o.+.   .    |
|    .+o..        |
+----[SHA256]-----+`, "\n")
	if got := Glyph(bytes.Repeat([]byte{7}, 32)); got != want {
		t.Errorf("drawn\n%s\nwant\n%s", got, want)
	}
	// A walk that is stopped by two walls stays in their corner.
	if got := drawWalk(make([]byte, 32)); !strings.Contains(got, "\n|E....   ") {
		t.Errorf("the corner is not the end:\n%s", got)
	}
}
