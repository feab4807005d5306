package vault_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dals-host/dals-host/sdk/vault"
)

const (
	host   = "0123456789abcdef"
	serial = "DMN-TP-1-deadbeef-00001"
)

func testKey(b byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), key
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkpoint signs text as the record of the host does.
func checkpoint(t testing.TB, name string, seed byte, text string) []byte {
	t.Helper()
	_, key := testKey(seed)
	signer, err := vault.NoteSigner(name, key)
	must(t, err)
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	must(t, err)
	return signed
}

func text(origin string, size uint64, root []byte) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root))
}

func verifierKey(t testing.TB) string {
	t.Helper()
	public, _ := testKey(1)
	key, _, err := vault.NoteVerifier(vault.Origin(host), public)
	must(t, err)
	return key
}

func seedVault(t testing.TB, size uint64, root []byte) (accountability, reflection []byte) {
	t.Helper()
	signed := checkpoint(t, vault.Origin(host), 1, text(vault.Origin(host), size, root))
	accountability, reflection, err := vault.Seed(host, serial, signed, time.Date(2026, 11, 22, 17, 0, 0, 0, time.FixedZone("", 3600)))
	must(t, err)
	return accountability, reflection
}

func TestSeedAndCheck(t *testing.T) {
	t.Parallel()
	root := sha256.Sum256([]byte("a root"))
	for size, want := range map[uint64][]byte{0: rfc6962.DefaultHasher.EmptyRoot(), 1: root[:], 1 << 40: root[:]} {
		accountability, reflection := seedVault(t, size, want)
		gotSize, gotRoot, err := vault.CheckAccountability(accountability, serial, host, verifierKey(t))
		if err != nil || gotSize != size || !bytes.Equal(gotRoot, want) {
			t.Errorf("size %d: %d, %x, %v", size, gotSize, gotRoot, err)
		}
		if quota, err := vault.CheckReflection(reflection, serial); err != nil || quota != 65536 {
			t.Errorf("quota %d, %v", quota, err)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	accountability, reflection := seedVault(t, 0, rfc6962.DefaultHasher.EmptyRoot())
	var a struct{ Checkpoint string }
	must(t, json.Unmarshal(accountability, &a))
	quoted, err := json.Marshal(a.Checkpoint)
	must(t, err)
	want := `{
  "format": 1,
  "host_id": "0123456789abcdef",
  "worker_serial": "DMN-TP-1-deadbeef-00001",
  "checkpoint": ` + string(quoted) + `,
  "created_at": "2026-11-22T16:00:00Z"
}
`
	if string(accountability) != want {
		t.Errorf("accountability.json:\n%s\nwant\n%s", accountability, want)
	}
	if want := "{\n  \"format\": 1,\n  \"worker_serial\": \"" + serial + "\",\n  \"quota_bytes\": 65536\n}\n"; string(reflection) != want {
		t.Errorf("reflection.json:\n%s\nwant\n%s", reflection, want)
	}
	if _, _, err := vault.Seed("", serial, nil, time.Now()); err == nil {
		t.Error("seeded for no host")
	}
	if _, _, err := vault.Seed(host, "", nil, time.Now()); err == nil {
		t.Error("seeded for no worker")
	}
	if _, _, err := vault.Seed(host, serial, nil, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)); err == nil {
		t.Error("seeded at no time")
	}
}

func TestAccountabilityRefused(t *testing.T) {
	t.Parallel()
	empty := rfc6962.DefaultHasher.EmptyRoot()
	origin := vault.Origin(host)
	good, _ := seedVault(t, 0, empty)
	of := func(signed []byte) string {
		a, _, err := vault.Seed(host, serial, signed, time.Now())
		must(t, err)
		return string(a)
	}
	tampered := strings.Replace(string(checkpoint(t, origin, 1, text(origin, 5, empty))), "\n5\n", "\n6\n", 1)
	for name, file := range map[string]string{
		"nothing":              "",
		"empty":                "{}",
		"null":                 "null",
		"another format":       strings.Replace(string(good), `"format": 1`, `"format": 2`, 1),
		"another worker":       strings.Replace(string(good), "00001", "00002", 1),
		"another host":         strings.Replace(string(good), `"host_id": "0`, `"host_id": "1`, 1),
		"unknown key":          strings.Replace(string(good), "{", `{"more": 1,`, 1),
		"text after the end":   string(good) + "{}",
		"too long":             string(good) + strings.Repeat(" ", 64<<10),
		"no checkpoint":        of(nil),
		"unsigned":             of([]byte(text(origin, 0, empty))),
		"another key":          of(checkpoint(t, origin, 2, text(origin, 0, empty))),
		"another key's name":   of(checkpoint(t, "dals.other/record", 1, text(origin, 0, empty))),
		"another record":       of(checkpoint(t, origin, 1, text("dals.other/record", 0, empty))),
		"size changed":         of([]byte(tampered)),
		"negative size":        of(checkpoint(t, origin, 1, origin+"\n-1\n"+base64.StdEncoding.EncodeToString(empty)+"\n")),
		"short root":           of(checkpoint(t, origin, 1, text(origin, 3, empty[:31]))),
		"no root":              of(checkpoint(t, origin, 1, origin+"\n3\n")),
		"empty, but with root": of(checkpoint(t, origin, 1, text(origin, 0, bytes.Repeat([]byte{1}, 32)))),
	} {
		if size, root, err := vault.CheckAccountability([]byte(file), serial, host, verifierKey(t)); err == nil || size != 0 || root != nil {
			t.Errorf("%s: %d, %x, %v", name, size, root, err)
		}
	}
	public, _ := testKey(2)
	stranger, _, err := vault.NoteVerifier(origin, public)
	must(t, err)
	for name, key := range map[string]string{"no key": "", "noise": "a+b+c", "another host's key": stranger} {
		if _, _, err := vault.CheckAccountability(good, serial, host, key); err == nil {
			t.Errorf("under %s it holds", name)
		}
	}
}

func TestReflectionRefused(t *testing.T) {
	t.Parallel()
	_, good := seedVault(t, 0, rfc6962.DefaultHasher.EmptyRoot())
	for name, file := range map[string]string{
		"nothing":        "",
		"another format": strings.Replace(string(good), `"format": 1`, `"format": 0`, 1),
		"another worker": strings.Replace(string(good), "00001", "00002", 1),
		"unknown key":    strings.Replace(string(good), "{", `{"more": 1,`, 1),
		"below zero":     strings.Replace(string(good), "65536", "-1", 1),
		"no number":      strings.Replace(string(good), "65536", `"65536"`, 1),
	} {
		if quota, err := vault.CheckReflection([]byte(file), serial); err == nil {
			t.Errorf("%s: %d", name, quota)
		}
	}
}

// A checkpoint of ours is one that the sum database's own code reads.
func TestCheckpointIsATreeHead(t *testing.T) {
	t.Parallel()
	public, _ := testKey(1)
	encoded, verifier, err := vault.NoteVerifier("dals.x/record", public)
	must(t, err)
	root := tlog.Hash(sha256.Sum256([]byte("r")))
	// The same but for the first line, which that log fixes.
	text := strings.Replace(text("dals.x/record", 7, root[:]), "dals.x/record", "go.sum database tree", 1)
	signed := checkpoint(t, "dals.x/record", 1, text)
	again, err := note.NewVerifier(encoded)
	must(t, err)
	opened, err := note.Open(signed, note.VerifierList(again))
	must(t, err)
	tree, err := tlog.ParseTree([]byte(opened.Text))
	must(t, err)
	if tree.N != 7 || tree.Hash != root || again.KeyHash() != verifier.KeyHash() || verifier.Name() != "dals.x/record" {
		t.Errorf("%+v, %08x, %08x", tree, again.KeyHash(), verifier.KeyHash())
	}
}

// The encoding and the key hash, step by step as the note format tells them.
func TestNoteKeys(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey)
	hash := sha256.Sum256(append([]byte("n\n\x01"), public...))
	want := fmt.Sprintf("n+%x+%s", hash[:4], base64.StdEncoding.EncodeToString(append([]byte{1}, public...)))
	got, _, err := vault.NoteVerifier("n", public)
	if err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	signer, err := vault.NoteSigner("n", key)
	must(t, err)
	signature, err := signer.Sign([]byte("text\n"))
	if err != nil || !ed25519.Verify(public, []byte("text\n"), signature) {
		t.Errorf("the signer signs with another key: %v", err)
	}
	for _, name := range []string{"", "a b", "a+b", "a\n", "\xff"} {
		if _, err := vault.NoteSigner(name, key); err == nil {
			t.Errorf("name %q has a signer", name)
		}
		if _, _, err := vault.NoteVerifier(name, public); err == nil {
			t.Errorf("name %q has a verifier", name)
		}
	}
	if _, err := vault.NoteSigner("n", key[:32]); err == nil {
		t.Error("half a key signs")
	}
	if _, _, err := vault.NoteVerifier("n", public[:31]); err == nil {
		t.Error("a short key verifies")
	}
}

func FuzzCheckAccountability(f *testing.F) {
	good, _ := seedVault(f, 0, rfc6962.DefaultHasher.EmptyRoot())
	f.Add(good)
	f.Add([]byte(`{"format":1,"host_id":"0123456789abcdef","worker_serial":"` + serial + `","checkpoint":"\n\n"}`))
	key := verifierKey(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		size, root, err := vault.CheckAccountability(data, serial, host, key)
		if err == nil && (size != 0 || !bytes.Equal(root, rfc6962.DefaultHasher.EmptyRoot())) {
			t.Fatalf("a checkpoint that nobody signed: %d, %x", size, root)
		}
		if quota, err := vault.CheckReflection(data, serial); err == nil && quota < 0 {
			t.Fatalf("quota %d", quota)
		}
	})
}
