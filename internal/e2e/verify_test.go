package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestVerifyNamesEveryChange changes a real worker's folder in every way and asks
// the real command. Links, modes and all that is put back in between hold again.
func TestVerifyNamesEveryChange(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		nora, ben := h.forge("nora", "template"), h.forge("ben", "ledger")
		stranger := newHost(t, "process")
		theirs := stranger.folder(stranger.forge("nora", "template").WorkerSerial)
		dir := h.folder(nora.WorkerSerial)
		at := func(path string) string { return filepath.Join(dir, path) }
		kept := t.TempDir()
		copyFiles(t, dir, kept)
		const notSigned = "worker_manifest.json: not what this host signed in worker_manifest.sig"
		for _, c := range []struct {
			name string
			do   func() error
			want []string
		}{
			{"nothing", func() error { return nil }, nil},
			{"a byte", func() error { return os.WriteFile(at("config.json"), []byte("{} "), 0o440) }, []string{"config.json: sha256 changed"}},
			{"the key", func() error { return os.WriteFile(at("certs/worker.key"), nil, 0o600) }, []string{"certs/worker.key: sha256 changed"}},
			{"mode", func() error { return os.Chmod(at("identity.json"), 0o644) }, []string{"identity.json: mode 0644, want 0440"}},
			{"mode of a folder", func() error { return os.Chmod(at("vault"), 0o777) }, []string{"vault/: mode 0777, want 0750"}},
			{"missing", func() error { return os.Remove(at("certs/ca.pem")) }, []string{"certs/ca.pem: missing"}},
			{"extra", func() error { return os.WriteFile(at("certs/extra"), nil, 0o440) }, []string{"certs/extra: not in the manifest"}},
			{"extra folder", func() error { return os.Mkdir(at("extra"), 0o700) }, []string{"extra/: not in the manifest"}},
			{"link to the same", func() error {
				return firstError(os.Rename(at("config.json"), at("logs/c")), os.Symlink("logs/c", at("config.json")))
			}, []string{"config.json: is a symlink"}},
			{"extra link", func() error { return os.Symlink("/etc/passwd", at("vault/passwd")) }, []string{"vault/passwd: is a symlink"}},
			{"pipe", func() error {
				return firstError(os.Remove(at("config.json")), syscall.Mkfifo(at("config.json"), 0o440))
			}, []string{"config.json: is a pipe"}},
			{"folder", func() error { return firstError(os.Remove(at("config.json")), os.Mkdir(at("config.json"), 0o750)) }, []string{"config.json: is a directory"}},
			{"many", func() error {
				return firstError(os.Remove(at("vault/reflection.json")), os.WriteFile(at("a"), nil, 0o440), os.Chmod(at("certs"), 0o755))
			}, []string{"a: not in the manifest", "certs/: mode 0755, want 0750", "vault/reflection.json: missing"}},
			{"no manifest", func() error { return os.Remove(at("worker_manifest.json")) }, []string{"worker_manifest.json: missing"}},
			{"another host's manifest", func() error {
				copyAll(t, filepath.Join(theirs, "worker_manifest.json"), dir)
				copyAll(t, filepath.Join(theirs, "worker_manifest.sig"), dir)
				return nil
			}, []string{notSigned}},
			{"another host's signature", func() error {
				copyAll(t, filepath.Join(theirs, "worker_manifest.sig"), dir)
				return nil
			}, []string{notSigned}},
		} {
			if err := c.do(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if said := h.verifyDifferences("nora", len(c.want) == 0); !slices.Equal(said, c.want) {
				t.Errorf("%s: verify says %q, want %q", c.name, said, c.want)
			}
			restore(t, kept, dir)
		}
		// A whole folder of another worker of this host is well signed, and not it.
		removeFiles(t, dir)
		copyFiles(t, h.folder(ben.WorkerSerial), dir)
		if said := h.verifyDifferences("nora", false); len(said) == 0 || !strings.Contains(said[0], "worker_serial is "+ben.WorkerSerial) {
			t.Errorf("another worker's folder: %q", said)
		}
		restore(t, kept, dir)
		h.verify()
	})
}

// verifyDifferences runs the command and checks that code and document agree.
func (h *host) verifyDifferences(worker string, holds bool) []string {
	h.t.Helper()
	stdout, stderr, code := h.run("verify", worker, "--json")
	var said struct {
		Integrity   bool     `json:"vault_integrity"`
		Differences []string `json:"differences"`
	}
	if err := json.Unmarshal([]byte(stdout), &said); err != nil {
		h.t.Fatalf("verify: exit %d: %v\n%s%s", code, err, stdout, stderr)
	}
	if said.Integrity != holds || (code == 0) != holds || strings.Contains(stderr, "vault_integrity=false") == holds {
		h.t.Errorf("verify: exit %d, vault_integrity %t, want %t: %s", code, said.Integrity, holds, stderr)
	}
	if len(said.Differences) == 0 {
		return nil
	}
	return said.Differences
}

func (h *host) folder(serial string) string {
	return filepath.Join(h.dir, "workers", "instances", serial)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// isFixed says whether a name at the top of a worker's folder is one that its
// manifest speaks of.
func isFixed(name string) bool { return name != "state" && name != "run" && name != "logs" }

// restore puts a worker's folder back as it was kept, but for what changes while
// it lives.
func restore(t *testing.T, kept, dir string) {
	t.Helper()
	removeFiles(t, dir)
	copyFiles(t, kept, dir)
}

func removeFiles(t *testing.T, dir string) {
	t.Helper()
	eachFixed(t, dir, func(path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	})
}

func copyFiles(t *testing.T, from, to string) {
	t.Helper()
	eachFixed(t, from, func(path string) { copyAll(t, path, to) })
}

func eachFixed(t *testing.T, dir string, do func(path string)) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if isFixed(e.Name()) {
			do(filepath.Join(dir, e.Name()))
		}
	}
}

// copyAll copies a file or a folder, with owners and modes.
func copyAll(t *testing.T, from, to string) {
	t.Helper()
	if text, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", from, err, text)
	}
}
