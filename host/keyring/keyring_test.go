package keyring

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/worker"
)

func first(t *testing.T) (string, *Keyring) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	k, err := Open(Config{Dir: dir, First: true})
	if err != nil {
		t.Fatal(err)
	}
	return dir, k
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

const wantDerived = "f512b285ab698974 5e5845ff8937113e 1ad808a4184df7f0 b0c1eb7f16bcbf36 dals.f512b285ab698974/record+546dc9be+AXiPJCeqV7QBXtuN7LVrswqMYzA7PbLa8KuMxic/iEsd"

// TestDerivedKeys holds the derivation still: other keys would be another host.
// The expected values come from Python's hmac and OpenSSL's Ed25519.
func TestDerivedKeys(t *testing.T) {
	t.Parallel()
	k, err := derive(bytes.Repeat([]byte{0x42}, 32))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %x %x %x %s", k.HostID(), k.CA().Public()[:8], k.Manifest().Public()[:8], k.Stamp().Public()[:8], k.CheckpointKey())
	if got != wantDerived {
		t.Errorf("derived\n%s, want\n%s", got, wantDerived)
	}
}

func TestSeedIsMadeOnce(t *testing.T) {
	t.Parallel()
	dir, k := first(t)
	path := filepath.Join(dir, SeedFile)
	if m := mode(t, path); m != 0o600 {
		t.Errorf("seed has mode %s", m)
	}
	if m := mode(t, dir); m != fs.ModeDir|0o700 {
		t.Errorf("folder has mode %s", m)
	}
	for _, again := range []bool{true, false} {
		l, err := Open(Config{Dir: dir, First: again})
		if err != nil {
			t.Fatal(err)
		}
		if l.HostID() != k.HostID() || l.CheckpointKey() != k.CheckpointKey() || !l.Stamp().Private().Equal(k.Stamp().Private()) {
			t.Error("other keys at the second start")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, other := first(t); other.HostID() == k.HostID() {
		t.Error("two hosts are one")
	}
}

func TestManyFirstStartsAreOneHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			k, err := Open(Config{Dir: dir, First: true})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = k.HostID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("hosts %q", ids)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm   func(string) error
		family error
		want   string
		hint   string
	}{
		"missing":    {os.Remove, worker.ErrNotFound, "is missing", "restore it"},
		"short":      {func(p string) error { return os.Truncate(p, 31) }, worker.ErrCorrupt, "has 31 bytes, want 32", "restore it"},
		"long":       {func(p string) error { return os.Truncate(p, 33) }, worker.ErrCorrupt, "has 33 bytes, want 32", "restore it"},
		"group":      {func(p string) error { return os.Chmod(p, 0o640) }, worker.ErrRefused, "has mode 0640", "chmod 600 /"},
		"others":     {func(p string) error { return os.Chmod(p, 0o604) }, worker.ErrRefused, "has mode 0604", "chmod 600 /"},
		"executable": {func(p string) error { return os.Chmod(p, 0o700) }, worker.ErrRefused, "has mode 0700", "chmod 600 /"},
		"symlink": {func(p string) error {
			return errors.Join(os.Rename(p, p+".real"), os.Symlink(p+".real", p))
		}, worker.ErrRefused, "is a symlink", "itself"},
		"folder": {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, worker.ErrRefused, "not a regular file", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := first(t)
			if err := c.harm(filepath.Join(dir, SeedFile)); err != nil {
				t.Fatal(err)
			}
			_, err := Open(Config{Dir: dir})
			if !errors.Is(err, c.family) || !strings.Contains(err.Error(), c.want) || !strings.Contains(worker.HintOf(err), c.hint) {
				t.Errorf("%v, hint %q", err, worker.HintOf(err))
			}
			if _, err := os.Lstat(filepath.Join(dir, SeedFile)); name == "missing" && err == nil {
				t.Error("a missing seed was made anew")
			}
		})
	}
}

func TestReadOnlySeedIsFine(t *testing.T) {
	t.Parallel()
	dir, _ := first(t)
	if err := os.Chmod(filepath.Join(dir, SeedFile), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
}

func TestOperator(t *testing.T) {
	t.Parallel()
	dir, k := first(t)
	path := filepath.Join(dir, OperatorFile)
	if _, _, err := k.LoadOrCreateOperator(false); !errors.Is(err, worker.ErrNotFound) || !strings.Contains(worker.HintOf(err), "client add") {
		t.Errorf("not first, missing: %v, hint %q", err, worker.HintOf(err))
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("made a key that nobody asked for")
	}
	made, created, err := k.LoadOrCreateOperator(true)
	if err != nil || !created || mode(t, path) != 0o600 {
		t.Fatalf("created %t, %v", created, err)
	}
	for _, isFirst := range []bool{true, false} {
		again, created, err := k.LoadOrCreateOperator(isFirst)
		if err != nil || created || !again.Private().Equal(made.Private()) {
			t.Errorf("created %t, %v", created, err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.LoadOrCreateOperator(false); !errors.Is(err, worker.ErrRefused) || !strings.Contains(worker.HintOf(err), "chmod 600 "+path) {
		t.Errorf("%v, hint %q", err, worker.HintOf(err))
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.LoadOrCreateOperator(false); err == nil {
		t.Error("no PEM, no error")
	}
}

func TestCheckpointKeySigns(t *testing.T) {
	t.Parallel()
	_, k := first(t)
	signed, err := note.Sign(&note.Note{Text: "a\n"}, k.CheckpointSigner())
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(k.CheckpointKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
		t.Error(err)
	}
	if v.Name() != "dals."+k.HostID()+"/record" || len(k.HostID()) != 16 {
		t.Error(v.Name())
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	t.Parallel()
	k, err := NewWorkerKey()
	if err != nil {
		t.Fatal(err)
	}
	inside := struct{ Key Key }{k}
	for _, v := range []any{k, &k, inside} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%t"} {
			if s := fmt.Sprintf(verb, v); !strings.Contains(s, "[key]") || leaks(s, k) {
				t.Errorf("%s of %T prints %s", verb, v, s)
			}
		}
		if s, err := json.Marshal(v); err != nil || leaks(string(s), k) {
			t.Errorf("JSON: %s, %v", s, err)
		}
	}
	if s := fmt.Sprint(k.Private().Public()); s == "" || !ed25519.Verify(k.Public(), nil, ed25519.Sign(k.Private(), nil)) {
		t.Error("the key is not one")
	}
}

// leaks says whether s shows a part of the key in any base that fmt uses.
func leaks(s string, k Key) bool {
	part := []byte(k.Private()[:3])
	return strings.Contains(s, hex.EncodeToString(part)) || strings.Contains(s, strings.Trim(fmt.Sprintf("%d", part), "[]"))
}

// TestSweep: of what is in the folder only the unfinished goes.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	if err := Sweep(filepath.Join(dir, "none")); err != nil {
		t.Errorf("a folder that is not there yet: %v", err)
	}
	for _, name := range []string{SeedFile, OperatorFile, ".new-123", "note"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 || left[0].Name() != SeedFile {
		t.Errorf("left: %v, %v", left, err)
	}
}
