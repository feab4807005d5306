package worker

import (
	"os"
	"strings"
	"testing"
)

// TestForgeVersion: version.txt is where people look.
func TestForgeVersion(t *testing.T) {
	text, err := os.ReadFile("../../version.txt")
	if err != nil || strings.TrimSpace(string(text)) != ForgeVersion {
		t.Fatalf("version.txt says %q (%v), ForgeVersion is %s", text, err, ForgeVersion)
	}
}
