package manifest_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/sdk/manifest"
)

func TestScan(t *testing.T) {
	t.Parallel()
	dir, _ := signed(t)
	entries, err := manifest.Scan(openRoot(t, dir))
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%s %s %d", e.Path, e.Mode, e.Size))
	}
	want := []string{
		"certs/ 0750 0", "certs/ca.pem 0440 3", "certs/worker.key 0600 7", "certs/worker.pem 0440 7", "config.json 0440 3",
		"identity.json 0440 44", "vault/ 0750 0", "vault/accountability.json 0440 3", "vault/reflection.json 0440 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// What sha256sum prints for "ca\n" and for an empty file.
	if s := entries[1].SHA256; s != "314a01b67979d4ecc6667666046246e726d9848903e33d0e63fab1165aea9d94" {
		t.Errorf("certs/ca.pem: %s", s)
	}
	if s := entries[8].SHA256; s != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("vault/reflection.json: %s", s)
	}
}

func TestScanNamesEveryOddity(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	must(t, os.Symlink("ca.pem", filepath.Join(dir, "certs/inner")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, syscall.Mkfifo(filepath.Join(dir, "state/pipe"), 0o600)) // state is not looked into
	listen(t, filepath.Join(dir, "vault/sock"))
	put(t, filepath.Join(dir, "a\x1b[2J"), "", 0o440)
	put(t, filepath.Join(dir, "b\xff"), "", 0o440)
	must(t, os.Truncate(filepath.Join(dir, "config.json"), 16<<20+1)) // sparse
	entries, err := manifest.Scan(openRoot(t, dir))
	if entries != nil {
		t.Errorf("scanned all the same: %v", entries)
	}
	wantFault(t, err,
		`"a\x1b[2J": a name that does not print`, `"b\xff": a name that does not print`, "certs/inner: is a symlink",
		"config.json: more than 16777216 bytes", "link: is a symlink", "pipe: is a pipe", "vault/sock: is a socket")
}

func TestScanIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 4097 {
		put(t, filepath.Join(dir, fmt.Sprint(i)), "", 0o440)
	}
	_, err := manifest.Scan(openRoot(t, dir))
	wantFault(t, err, ".: more than 4096 files")
	must(t, os.Remove(filepath.Join(dir, "77")))
	must(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	if entries, err := manifest.Scan(openRoot(t, dir)); err != nil || len(entries) != 4096 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

func listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
}

func wantFault(t *testing.T, err error, want ...string) {
	t.Helper()
	var f *manifest.Fault
	if !errors.As(err, &f) {
		t.Fatalf("not a Fault: %v", err)
	}
	if diff := cmp.Diff(want, f.Differences); diff != "" {
		t.Error(diff)
	}
	for _, d := range want[:min(len(want), 8)] {
		if !strings.Contains(err.Error(), d) {
			t.Errorf("the text does not name %q: %v", d, err)
		}
	}
}

func TestCheckHolds(t *testing.T) {
	t.Parallel()
	dir, public := signed(t)
	m, err := manifest.Check(openRoot(t, dir), public)
	must(t, err)
	if m.WorkerName != "nora" || len(m.Files) != 9 {
		t.Errorf("%+v", m)
	}
	// What a worker does in its life changes nothing.
	put(t, filepath.Join(dir, "state/new"), "x", 0o777)
	must(t, os.RemoveAll(filepath.Join(dir, "run")))
	must(t, os.Chmod(filepath.Join(dir, "logs"), 0o777))
	must(t, os.Chmod(dir, 0o750))
	_, err = manifest.Check(openRoot(t, dir), public)
	must(t, err)
}

// An open descriptor is how a worker under the process launcher sees its folder.
func TestCheckByDescriptor(t *testing.T) {
	t.Parallel()
	dir, public := signed(t)
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	_, err = manifest.Check(openRoot(t, fmt.Sprintf("/proc/self/fd/%d", f.Fd())), public)
	must(t, err)
}

func TestCheckNamesEveryTampering(t *testing.T) {
	t.Parallel()
	type tampering struct {
		do   func(t *testing.T, at func(string) string)
		want []string
	}
	edit := func(path, was, is string) func(*testing.T, func(string) string) {
		return func(t *testing.T, at func(string) string) {
			text, err := os.ReadFile(at(path))
			must(t, err)
			changed := strings.Replace(string(text), was, is, 1)
			if changed == string(text) {
				t.Fatal("the test changes nothing")
			}
			put(t, at(path), changed, 0o440)
		}
	}
	resign := func(t *testing.T, at func(string) string) {
		_, stranger := testKey(9)
		encoded, err := os.ReadFile(at(manifest.File))
		must(t, err)
		put(t, at(manifest.SignatureFile), string(manifest.Sign(stranger, encoded)), 0o440)
	}
	tamperings := map[string]tampering{
		"content, same size":  {edit("identity.json", "deadbeef", "deadbeee"), []string{"identity.json: sha256 changed"}},
		"content, other size": {edit("config.json", "{}", `{"a":1}`), []string{"config.json: sha256 changed"}},
		"content added":       {edit("certs/ca.pem", "ca", "ca\nanother"), []string{"certs/ca.pem: sha256 changed"}},
		"mode of a file": {func(t *testing.T, at func(string) string) {
			must(t, os.Chmod(at("config.json"), 0o644))
		}, []string{"config.json: mode 0644, want 0440"}},
		"set-uid": {func(t *testing.T, at func(string) string) {
			must(t, os.Chmod(at("config.json"), 0o440|os.ModeSetuid))
		}, []string{"config.json: mode 4440, want 0440"}},
		"mode of a folder": {func(t *testing.T, at func(string) string) {
			must(t, os.Chmod(at("vault"), 0o777|os.ModeSticky))
		}, []string{"vault/: mode 1777, want 0750"}},
		"content and mode": {func(t *testing.T, at func(string) string) {
			put(t, at("certs/worker.key"), "mine", 0o644)
		}, []string{"certs/worker.key: mode 0644, want 0600", "certs/worker.key: sha256 changed"}},
		"missing file": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at("certs/worker.key")))
		}, []string{"certs/worker.key: missing"}},
		"missing folder": {func(t *testing.T, at func(string) string) {
			must(t, os.RemoveAll(at("vault")))
		}, []string{"vault/: missing", "vault/accountability.json: missing", "vault/reflection.json: missing"}},
		"extra file": {func(t *testing.T, at func(string) string) {
			put(t, at("extra.txt"), "", 0o440)
		}, []string{"extra.txt: not in the manifest"}},
		"extra file below": {func(t *testing.T, at func(string) string) {
			put(t, at("certs/state/x"), "", 0o440)
		}, []string{"certs/state/: not in the manifest", "certs/state/x: not in the manifest"}},
		"extra folder": {func(t *testing.T, at func(string) string) {
			must(t, os.Mkdir(at("extra"), 0o700))
		}, []string{"extra/: not in the manifest"}},
		"renamed file": {func(t *testing.T, at func(string) string) {
			must(t, os.Rename(at("config.json"), at("config2.json")))
		}, []string{"config.json: missing", "config2.json: not in the manifest"}},
		"symlink to the same content": {func(t *testing.T, at func(string) string) {
			must(t, os.Rename(at("config.json"), at("state/config.json")))
			must(t, os.Symlink("state/config.json", at("config.json")))
		}, []string{"config.json: is a symlink"}},
		"symlink out": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at("config.json")))
			must(t, os.Symlink("/etc/passwd", at("config.json")))
		}, []string{"config.json: is a symlink"}},
		"folder as a symlink": {func(t *testing.T, at func(string) string) {
			must(t, os.Rename(at("vault"), at("state/vault")))
			must(t, os.Symlink("state/vault", at("vault")))
		}, []string{"vault/accountability.json: missing", "vault/reflection.json: missing", "vault: is a symlink"}},
		"file as a folder": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at("config.json")))
			must(t, os.Mkdir(at("config.json"), 0o750))
		}, []string{"config.json: is a directory"}},
		"folder as a file": {func(t *testing.T, at func(string) string) {
			must(t, os.RemoveAll(at("vault")))
			put(t, at("vault"), "", 0o440)
		}, []string{"vault/accountability.json: missing", "vault/reflection.json: missing", "vault: is not a directory"}},
		"file as a pipe": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at("config.json")))
			must(t, syscall.Mkfifo(at("config.json"), 0o440))
		}, []string{"config.json: is a pipe"}},
		"state as a symlink": {func(t *testing.T, at func(string) string) {
			must(t, os.RemoveAll(at("state")))
			must(t, os.Symlink("/etc", at("state")))
		}, []string{"state: is a symlink"}},
		"run as a file": {func(t *testing.T, at func(string) string) {
			must(t, os.RemoveAll(at("run")))
			put(t, at("run"), "", 0o440)
		}, []string{"run: not in the manifest"}},
		"huge file": {func(t *testing.T, at func(string) string) {
			must(t, os.Truncate(at("config.json"), 1<<40)) // sparse
		}, []string{"config.json: more than 16777216 bytes"}},
		"several at once": {func(t *testing.T, at func(string) string) {
			put(t, at("z"), "", 0o440)
			put(t, at("identity.json"), "{}", 0o440)
			must(t, os.Remove(at("certs/ca.pem")))
			must(t, os.Symlink("z", at("a")))
		}, []string{"a: is a symlink", "certs/ca.pem: missing", "identity.json: sha256 changed", "z: not in the manifest"}},

		"manifest byte flipped": {edit(manifest.File, "nora", "nora"[:3]+"b"), []string{"worker_manifest.json: not what this host signed in worker_manifest.sig"}},
		"manifest white space":  {edit(manifest.File, "{", "{ "), []string{"worker_manifest.json: not what this host signed in worker_manifest.sig"}},
		"signature by another":  {resign, []string{"worker_manifest.json: not what this host signed in worker_manifest.sig"}},
		"manifest and a link": {func(t *testing.T, at func(string) string) {
			resign(t, at)
			must(t, os.Symlink("z", at("a")))
		}, []string{"a: is a symlink", "worker_manifest.json: not what this host signed in worker_manifest.sig"}},
		"signature longer": {func(t *testing.T, at func(string) string) {
			text, err := os.ReadFile(at(manifest.SignatureFile))
			must(t, err)
			put(t, at(manifest.SignatureFile), string(text)+"\n", 0o440)
		}, []string{"worker_manifest.json: not what this host signed in worker_manifest.sig"}},
		"no manifest": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at(manifest.File)))
		}, []string{"worker_manifest.json: missing"}},
		"no signature": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at(manifest.SignatureFile)))
		}, []string{"worker_manifest.sig: missing"}},
		"manifest as a symlink": {func(t *testing.T, at func(string) string) {
			must(t, os.Rename(at(manifest.File), at("state/m")))
			must(t, os.Symlink("state/m", at(manifest.File)))
		}, []string{"worker_manifest.json: is a symlink"}},
		"manifest as a pipe": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at(manifest.File)))
			must(t, syscall.Mkfifo(at(manifest.File), 0o440))
		}, []string{"worker_manifest.json: is a pipe"}},
		"signature as a folder": {func(t *testing.T, at func(string) string) {
			must(t, os.Remove(at(manifest.SignatureFile)))
			must(t, os.Mkdir(at(manifest.SignatureFile), 0o750))
		}, []string{"worker_manifest.sig: is a directory"}},
		"modes of both": {func(t *testing.T, at func(string) string) {
			must(t, os.Chmod(at(manifest.File), 0o640))
			must(t, os.Chmod(at(manifest.SignatureFile), 0o666))
		}, []string{"worker_manifest.json: mode 0640, want 0440", "worker_manifest.sig: mode 0666, want 0440"}},
		"huge manifest": {func(t *testing.T, at func(string) string) {
			must(t, os.Truncate(at(manifest.File), 1<<40)) // sparse
		}, []string{"worker_manifest.json: not what this host signed in worker_manifest.sig"}},
	}
	for name, c := range tamperings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, public := signed(t)
			c.do(t, func(p string) string { return filepath.Join(dir, p) })
			m, err := manifest.Check(openRoot(t, dir), public)
			if m != nil {
				t.Error("there is a manifest all the same")
			}
			wantFault(t, err, c.want...)
		})
	}
}

// Any byte of any listed file, and of the two of the manifest.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	dir, public := signed(t)
	root := openRoot(t, dir)
	m, err := manifest.Check(root, public)
	must(t, err)
	files := []string{manifest.File, manifest.SignatureFile}
	for _, e := range m.Files {
		if !strings.HasSuffix(e.Path, "/") {
			files = append(files, e.Path)
		}
	}
	for _, file := range files {
		at := filepath.Join(dir, file)
		text, err := os.ReadFile(at)
		must(t, err)
		info, err := os.Stat(at)
		must(t, err)
		for i := range text {
			if file == manifest.File && i%7 != 0 { // long; the signature covers it as a whole
				continue
			}
			bad := bytes.Clone(text)
			bad[i] ^= 0x20
			put(t, at, string(bad), info.Mode())
			var fault *manifest.Fault
			if _, err := manifest.Check(root, public); !errors.As(err, &fault) || !named(fault, file) {
				t.Fatalf("%s, byte %d: %v", file, i, err)
			}
		}
		put(t, at, string(text), info.Mode())
	}
	_, err = manifest.Check(root, public)
	must(t, err)
}

func named(f *manifest.Fault, file string) bool {
	if file == manifest.SignatureFile {
		file = manifest.File // the pair does not hold
	}
	return slices.ContainsFunc(f.Differences, func(d string) bool { return strings.HasPrefix(d, file+": ") })
}

func TestCheckSignedButNotDecodable(t *testing.T) {
	t.Parallel()
	dir, public := signed(t)
	_, key := testKey(1)
	text := `{"format":2}`
	put(t, filepath.Join(dir, manifest.File), text, 0o440)
	put(t, filepath.Join(dir, manifest.SignatureFile), string(manifest.Sign(key, []byte(text))), 0o440)
	_, err := manifest.Check(openRoot(t, dir), public)
	wantFault(t, err, "worker_manifest.json: decode manifest: format 2 is not 1")
}

// What a folder that cannot be read hides counts as a fault, never as well.
func TestCheckUnreadable(t *testing.T) {
	t.Parallel()
	dir, public := signed(t)
	root := openRoot(t, dir)
	must(t, root.Close())
	_, err := manifest.Check(root, public)
	var f *manifest.Fault
	if !errors.As(err, &f) || !strings.Contains(err.Error(), ".: cannot be read") || strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
}

func TestFaultTextIsBounded(t *testing.T) {
	t.Parallel()
	dir, public := signed(t)
	for i := range 100 {
		put(t, filepath.Join(dir, fmt.Sprintf("x%02d", i)), "", 0o440)
	}
	_, err := manifest.Check(openRoot(t, dir), public)
	var f *manifest.Fault
	if !errors.As(err, &f) || len(f.Differences) != 100 || len(err.Error()) > 400 || !strings.HasSuffix(err.Error(), "; and 92 more") {
		t.Errorf("%d differences, %v", len(f.Differences), err)
	}
}
