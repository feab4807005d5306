package manifest_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/proof"
)

var update = flag.Bool("update", false, "write the published vectors anew")

func testKey(b byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), key
}

// sample is the manifest of the published vectors, for the given files.
func sample(files []manifest.Entry) *manifest.Manifest {
	public, _ := testKey(2)
	return &manifest.Manifest{
		Format: 1, ForgeVersion: "2.0", WorkerName: "nora", WorkerType: "template", TypeVersion: "1.0.0",
		WorkerSerial: "DMN-TP-1-deadbeef-00001", ModelNumber: "DMN-TP-1", LedgerCode: "A1-000001", ClassCode: "A1",
		Port: 20001, PluginDigest: strings.Repeat("ab", 32), ImageDigest: "sha256:" + strings.Repeat("cd", 32),
		Modules:   []manifest.Module{{Path: "github.com/dals-host/dals-host", Version: "(devel)"}},
		PublicKey: public, Glyph: "+--[ED25519 256]--+\n|<&>|", HostID: "0123456789abcdef",
		CreatedAt: time.Date(2026, 11, 22, 16, 0, 0, 0, time.UTC), Files: files,
	}
}

// content is a worker's folder: the text of each file by its path.
var content = map[string]string{
	"identity.json":             `{"worker_serial":"DMN-TP-1-deadbeef-00001"}` + "\n",
	"config.json":               "{}\n",
	"certs/ca.pem":              "ca\n",
	"certs/worker.pem":          "worker\n",
	"certs/worker.key":          "secret\n",
	"vault/accountability.json": "{}\n",
	"vault/reflection.json":     "",
	"state/results/1":           "changes all the time",
	"run/note":                  "changes too",
	"logs/worker.log":           "and this",
}

// folder makes a worker's folder with the modes that the forge gives.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for path, text := range content {
		put(t, filepath.Join(dir, path), text, 0o440)
	}
	must(t, os.Chmod(filepath.Join(dir, "certs/worker.key"), 0o600))
	for _, d := range []string{"certs", "vault"} {
		must(t, os.Chmod(filepath.Join(dir, d), 0o750))
	}
	return dir
}

func put(t testing.TB, file, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(t, os.RemoveAll(file)) // it may not be writable
	must(t, os.WriteFile(file, []byte(text), 0o600))
	must(t, os.Chmod(file, mode))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

// signed makes a folder and its signed manifest.
func signed(t testing.TB) (dir string, public ed25519.PublicKey) {
	t.Helper()
	dir = folder(t)
	files, err := manifest.Scan(openRoot(t, dir))
	must(t, err)
	encoded, err := sample(files).Encode()
	must(t, err)
	public, key := testKey(1)
	put(t, filepath.Join(dir, manifest.File), string(encoded), 0o440)
	put(t, filepath.Join(dir, manifest.SignatureFile), string(manifest.Sign(key, encoded)), 0o440)
	return dir, public
}

// vector is what testdata/vector.json publishes beside the manifest itself.
type vector struct {
	Seed      string `json:"manifest_key_seed"`
	Public    string `json:"manifest_public_key"`
	Signature string `json:"worker_manifest_sig"`
}

// The vectors are what another implementation tests itself with: they change
// only with the format's number.
func TestVectors(t *testing.T) {
	t.Parallel()
	files, err := manifest.Scan(openRoot(t, folder(t)))
	must(t, err)
	encoded, err := sample(files).Encode()
	must(t, err)
	public, key := testKey(1)
	signature := manifest.Sign(key, encoded)
	v := vector{hex.EncodeToString(key.Seed()), hex.EncodeToString(public), hex.EncodeToString(signature)}
	if *update {
		text, err := json.MarshalIndent(v, "", "  ")
		must(t, err)
		must(t, os.WriteFile("testdata/vector.json", append(text, '\n'), 0o644))
		must(t, os.WriteFile("testdata/worker_manifest.json", encoded, 0o644))
	}
	published, err := os.ReadFile("testdata/worker_manifest.json")
	must(t, err)
	if diff := cmp.Diff(string(published), string(encoded)); diff != "" {
		t.Error(diff)
	}
	text, err := os.ReadFile("testdata/vector.json")
	must(t, err)
	var want vector
	must(t, json.Unmarshal(text, &want))
	if want != v {
		t.Errorf("made %+v\npublished %+v", v, want)
	}
	m, err := manifest.Decode(published)
	must(t, err)
	if diff := cmp.Diff(sample(files), m); diff != "" {
		t.Error(diff)
	}
	must(t, manifest.Verify(public, published, signature))
}

func TestVerify(t *testing.T) {
	t.Parallel()
	encoded, err := sample(nil).Encode()
	must(t, err)
	public, key := testKey(1)
	stranger, strangerKey := testKey(9)
	good := manifest.Sign(key, encoded)
	must(t, manifest.Verify(public, encoded, good))
	for name, err := range map[string]error{
		"another host's":      manifest.Verify(public, encoded, manifest.Sign(strangerKey, encoded)),
		"under another's key": manifest.Verify(stranger, encoded, good),
		"as an envelope":      manifest.Verify(public, encoded, proof.Sign(proof.Envelope, key, encoded)),
		"nothing":             manifest.Verify(public, encoded, nil),
		"changed":             manifest.Verify(public, encoded[1:], good),
	} {
		if !errors.Is(err, manifest.ErrBadSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0", 64)
	encoded, err := sample([]manifest.Entry{
		{Path: "certs/", Mode: "0750"}, {Path: "certs/ca.pem", Mode: "0440", Size: 3, SHA256: sum},
	}).Encode()
	must(t, err)
	if _, err := manifest.Decode(encoded); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string][2]string{
		"unknown key":    {`"format": 1,`, `"format": 1, "more": 1,`},
		"another format": {`"format": 1,`, `"format": 2,`},
		"key twice":      {`"format": 1,`, "\"format\": 1,\n  \"format\": 1,"},
		"other case":     {`"worker_name"`, `"Worker_Name"`},
		"other spelling": {`"nora"`, `"\u006eora"`},
		"white space":    {`"nora"`, ` "nora"`},
		"other zone":     {`16:00:00Z`, `16:00:00+00:00`},
		"no serial":      {`"DMN-TP-1-deadbeef-00001"`, `""`},
		"no host":        {`"0123456789abcdef"`, `""`},
		"short key":      {`"public_key": "gTl3`, `"public_key": "`},
		"no files":       {`"files": [`, `"file": [`},
		"mode":           {`"0440"`, `"440"`},
		"mode digit":     {`"0440"`, `"0449"`},
		"size":           {`"size": 3`, `"size": -3`},
		"huge size":      {`"size": 3`, `"size": 99999999999`},
		"sha256":         {`"` + sum + `"`, `"` + sum[1:] + `"`},
		"upper sha256":   {`"` + sum + `"`, `"` + sum[1:] + `A"`},
		"a fat folder":   {`"size": 0`, `"size": 1`},
		"up":             {`"certs/ca.pem"`, `"../ca.pem"`},
		"absolute":       {`"certs/ca.pem"`, `"/etc/passwd"`},
		"not clean":      {`"certs/ca.pem"`, `"certs//ca.pem"`},
		"the folder":     {`"certs/ca.pem"`, `"."`},
		"no path":        {`"certs/ca.pem"`, `""`},
		"control":        {`"certs/ca.pem"`, `"certs/\u001b[2J"`},
		"itself":         {`"certs/ca.pem"`, `"worker_manifest.json"`},
		"its signature":  {`"certs/ca.pem"`, `"worker_manifest.sig"`},
		"state":          {`"certs/ca.pem"`, `"state/x"`},
		"run":            {`"certs/"`, `"run/"`},
		"twice":          {`"certs/ca.pem"`, `"certs/"`},
		"out of order":   {`"certs/ca.pem"`, `"a"`},
	} {
		bad := bytes.Replace(encoded, []byte(edit[0]), []byte(edit[1]), 1)
		if bytes.Equal(bad, encoded) {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := manifest.Decode(bad); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "two": append(bytes.Clone(encoded), encoded...), "no end": encoded[:len(encoded)-2],
		"no newline": encoded[:len(encoded)-1], "too long": bytes.Repeat([]byte(" "), manifest.MaxSize+1),
	} {
		if _, err := manifest.Decode(bad); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	var many []manifest.Entry
	for i := range 4097 {
		many = append(many, manifest.Entry{Path: fmt.Sprintf("%05d/", i), Mode: "0750"})
	}
	for name, m := range map[string]*manifest.Manifest{
		"nothing":         {},
		"unsorted files":  sample([]manifest.Entry{{Path: "b/", Mode: "0750"}, {Path: "a/", Mode: "0750"}}),
		"too many files":  sample(many),
		"too much":        {Format: 1, WorkerSerial: "s", HostID: "h", PublicKey: make([]byte, 32), Glyph: strings.Repeat("x", manifest.MaxSize)},
		"text not UTF-8":  {Format: 1, WorkerSerial: "s\xff", HostID: "h", PublicKey: make([]byte, 32)},
		"a year too late": {Format: 1, WorkerSerial: "s", HostID: "h", PublicKey: make([]byte, 32), CreatedAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	encoded, err := sample([]manifest.Entry{{Path: "certs/", Mode: "0750"}}).Encode()
	must(f, err)
	f.Add(encoded)
	f.Add(bytes.Replace(encoded, []byte("certs/"), []byte(`\u2028/`), 1))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Decode(data)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("decoded from other bytes than it encodes to: %v\n%s\n%s", err, data, again)
		}
	})
}
