package e2e

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestRefusals asks for what must not be given. Each refusal has a code, a hint
// where there is advice, and leaves nothing behind.
func TestRefusals(t *testing.T) {
	h := newHost(t, "process")
	h.forge("nora", "template")

	t.Run("forge", func(t *testing.T) {
		good := client.ForgeRequest{Name: "eve", Type: "template", ClassCode: "A1"}
		tests := map[string]struct {
			edit func(*client.ForgeRequest)
			code string
			says string
		}{
			"unknown type":     {func(r *client.ForgeRequest) { r.Type = "xyz" }, client.CodeNotFound, "worker type 'xyz' is not registered"},
			"unknown version":  {func(r *client.ForgeRequest) { r.Version = "9.9.9" }, client.CodeNotFound, "9.9.9"},
			"empty name":       {func(r *client.ForgeRequest) { r.Name = "" }, client.CodeInvalid, "name"},
			"long name":        {func(r *client.ForgeRequest) { r.Name = strings.Repeat("n", 300) }, client.CodeInvalid, "name"},
			"path as a name":   {func(r *client.ForgeRequest) { r.Name = "../x" }, client.CodeInvalid, "name"},
			"emoji as a name":  {func(r *client.ForgeRequest) { r.Name = "🐐" }, client.CodeInvalid, "name"},
			"class code A":     {func(r *client.ForgeRequest) { r.ClassCode = "A" }, client.CodeInvalid, "class code"},
			"class code a1":    {func(r *client.ForgeRequest) { r.ClassCode = "a1" }, client.CodeInvalid, "class code"},
			"class code short": {func(r *client.ForgeRequest) { r.ClassCode = "300.100" }, client.CodeInvalid, "class code"},
			"class code 1e9":   {func(r *client.ForgeRequest) { r.ClassCode = "1e9" }, client.CodeInvalid, "class code"},
			"unknown config":   {func(r *client.ForgeRequest) { r.Config = map[string]any{"greetings": "x"} }, client.CodeInvalid, "config"},
			"wrong config":     {func(r *client.ForgeRequest) { r.Config = map[string]any{"greeting": 7} }, client.CodeInvalid, "config"},
			"name taken":       {func(r *client.ForgeRequest) { r.Name, r.ClassCode = "nora", "B2" }, client.CodeConflict, "class_code is A1, asked for B2"},
		}
		for name, test := range tests {
			request := good
			test.edit(&request)
			for _, request.DryRun = range []bool{true, false} {
				_, err := h.client.Forge(t.Context(), request)
				if codeOf(err) != test.code || !strings.Contains(err.Error(), test.says) {
					t.Errorf("%s: %v (%s)", name, err, codeOf(err))
				}
			}
		}
	})

	t.Run("forge again", func(t *testing.T) {
		again, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: "nora", Type: "template", ClassCode: "A1"})
		if err != nil || !again.Existed || again.WorkerSerial != h.worker("nora").WorkerSerial {
			t.Fatalf("%+v, %v", again, err)
		}
	})

	t.Run("send", func(t *testing.T) {
		tests := map[string]struct {
			kind  string
			input any
			code  string
		}{
			"unknown kind":      {"template.nothing", nil, "kind_unknown"},
			"not JSON":          {"template.echo", []byte("{"), "payload_not_json"},
			"misses the schema": {"template.echo", map[string]int{"message": 7}, "schema_mismatch"},
			"over 4 MiB":        {"template.echo", map[string]string{"message": strings.Repeat("x", 4<<20)}, "payload_too_large"},
			"task fails":        {"template.fail", map[string]string{"message": "no"}, "template_failed"},
		}
		for name, test := range tests {
			if _, err := h.send("nora", test.kind, test.input); codeOf(err) != test.code {
				t.Errorf("%s: %v (%s)", name, err, codeOf(err))
			}
		}
		if _, err := h.send("nobody", "template.echo", nil); codeOf(err) != client.CodeNotFound {
			t.Errorf("unknown worker: %v", err)
		}
		largest := map[string]string{"message": strings.Repeat("x", 4<<20-100)}
		if _, err := h.send("nora", "template.echo", largest); err != nil {
			t.Errorf("just under 4 MiB: %v", err)
		}
	})

	t.Run("envelopes", func(t *testing.T) {
		sign := func(c *client.Client) *workerv1.Envelope {
			env, err := c.Sign(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.echo", Input: map[string]string{"message": "hi"}})
			if err != nil {
				t.Fatal(err)
			}
			return env
		}
		_, key, _ := ed25519.GenerateKey(nil)
		stranger := h.dial(key)
		tampered := proto.CloneOf(sign(h.client))
		tampered.Payload = []byte(`{"message":"ho"}`)
		used := sign(h.client)
		if _, err := h.client.SendEnvelope(t.Context(), used, 0); err != nil {
			t.Fatal(err)
		}
		for code, env := range map[string]*workerv1.Envelope{"bad_proof": tampered, "replayed": used, "sender_unknown": sign(stranger)} {
			if _, err := h.client.SendEnvelope(t.Context(), env, 0); codeOf(err) != code {
				t.Errorf("%s: %v (%s)", code, err, codeOf(err))
			}
		}
		enrolled, err := stranger.AddClient(t.Context(), "stranger", key.Public().(ed25519.PublicKey))
		if err != nil || enrolled.Name != "stranger" {
			t.Fatal(err)
		}
		if _, err := stranger.SendEnvelope(t.Context(), sign(stranger), 0); err != nil {
			t.Errorf("enrolled: %v", err)
		}
		if _, err := h.client.RevokeClient(t.Context(), "stranger"); err != nil {
			t.Fatal(err)
		}
		if _, err := stranger.SendEnvelope(t.Context(), sign(stranger), 0); codeOf(err) != "sender_revoked" {
			t.Errorf("revoked: %v", err)
		}
	})

	t.Run("second host", func(t *testing.T) {
		_, stderr, code := h.run("serve", "--launcher", "process")
		if code != 1 || !strings.Contains(stderr, fmt.Sprintf("another host (pid %d) runs on it", h.cmd.Process.Pid)) {
			t.Errorf("exit %d: %s", code, stderr)
		}
	})

	h.settled()
	h.verify()
	if n := h.count(func(e record.Entry) bool { return e.Kind == record.Forge }); n != 1 {
		t.Errorf("%d forges recorded", n)
	}
	if n := h.count(func(e record.Entry) bool { return e.Kind == record.Void }); n != 0 {
		t.Errorf("%d ledger codes void: a refused request took numbers", n)
	}
}

// TestMisbehaviour lets a worker panic, hang, answer late and flood its log.
func TestMisbehaviour(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		h.forge("rogue", "rogue")
		n := func(n int) map[string]int { return map[string]int{"n": n} }
		if _, err := h.send("rogue", "rogue.panic", n(0)); codeOf(err) != "panicked" {
			t.Errorf("panic: %v (%s)", err, codeOf(err))
		}
		if _, err := h.send("rogue", "rogue.huge", n(5<<10)); codeOf(err) != "result_too_large" {
			t.Errorf("huge result: %v (%s)", err, codeOf(err))
		}
		began := time.Now()
		_, err := h.client.Send(t.Context(), client.SendRequest{Worker: "rogue", Kind: "rogue.hang", Input: n(4000), Timeout: 1500 * time.Millisecond})
		if codeOf(err) != client.CodeDeadline || time.Since(began) > 3*time.Second+patience {
			t.Errorf("hang: %v after %s", err, time.Since(began))
		}
		if _, err := h.send("rogue", "rogue.flood", n(4<<10)); err != nil {
			t.Errorf("flood: %v", err)
		}
		// By now the late answer has come; it changes nothing.
		time.Sleep(3 * time.Second)
		closing := func(status string) func(record.Entry) bool {
			return func(e record.Entry) bool { return e.Kind == record.Result && e.Envelope.Status == status }
		}
		if n := h.count(closing("deadline_exceeded")); n != 1 {
			t.Errorf("%d deadlines recorded", n)
		}
		if n := h.count(closing("ok")); n != 1 {
			t.Errorf("%d results recorded, want that of the flood alone", n)
		}
		if w := h.worker("rogue"); w.Restarts != 0 || w.State != "live" {
			t.Errorf("worker: %+v", w)
		}
		h.verify()
	})
}

// TestTampering changes every file of a worker and bytes of the record: each is
// found and named.
func TestTampering(t *testing.T) {
	h := newHost(t, "process")
	nora := h.forge("nora", "template")
	for range 3 {
		h.mustSend("nora", "template.echo", map[string]string{"message": "hi"})
	}
	h.verify()

	folder := filepath.Join(h.dir, "workers", "instances", nora.WorkerSerial)
	for _, name := range []string{
		"identity.json", "config.json", "worker_manifest.json", "worker_manifest.sig",
		"certs/ca.pem", "certs/worker.pem", "certs/worker.key", "vault/accountability.json", "vault/reflection.json",
	} {
		path := filepath.Join(folder, name)
		restore := spoil(t, path)
		stdout, stderr, code := h.run("verify", "nora")
		restore()
		if code != 1 || !strings.Contains(stdout+stderr, name) && name != "worker_manifest.sig" {
			t.Errorf("%s: exit %d: %s%s", name, code, stdout, stderr)
		}
	}
	h.verify()

	// What runs must be what was forged: a running binary cannot be written to,
	// but replaced.
	stored, err := filepath.Glob(filepath.Join(h.dir, "store", "sha256", "*"))
	if err != nil || len(stored) != 3 {
		t.Fatalf("store: %v, %v", stored, err)
	}
	for _, path := range stored {
		binary, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, append(binary, 0), 0o555)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = errors.Join(os.Remove(path), os.WriteFile(path, binary, 0o555)) }()
	}
	if stdout, stderr, code := h.run("verify", "nora"); code != 1 || !strings.Contains(stdout+stderr, "plugin binary") {
		t.Errorf("changed binary: exit %d: %s%s", code, stdout, stderr)
	}

	spoil(t, filepath.Join(folder, "config.json"))
	h.eventually("the worker's vault integrity is false", func() error {
		w := h.worker("nora")
		if w.VaultIntegrity || !strings.Contains(w.VaultFault, "config.json") {
			text, _ := json.Marshal(w)
			return &os.PathError{Op: "tamper", Path: string(text), Err: os.ErrInvalid}
		}
		return nil
	})

	h.eventually("the record is published", func() error {
		stdout, _, _ := h.run("vault", "verify", "--json")
		if !strings.Contains(stdout, `"unpublished": 0`) && !strings.Contains(stdout, `"unpublished":0`) {
			return os.ErrNotExist
		}
		return nil
	})
	err = filepath.WalkDir(filepath.Join(h.dir, "record"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") || strings.HasSuffix(d.Name(), "lock") {
			return err
		}
		restore := spoil(t, path)
		stdout, stderr, code := h.run("vault", "verify")
		restore()
		name, _ := filepath.Rel(filepath.Join(h.dir, "record"), path)
		if code != 1 || !strings.Contains(stdout+stderr, name) {
			t.Errorf("%s: exit %d: %s%s", name, code, stdout, stderr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRefusedStarts: a host does not start over what it cannot trust.
func TestRefusedStarts(t *testing.T) {
	h := newHost(t, "process")
	h.forge("nora", "template")
	refused := func(what, says string, args ...string) {
		t.Helper()
		stdout, stderr, code := h.run(append([]string{"serve", "--launcher", "process"}, args...)...)
		if code != 1 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "hint: ") {
			t.Errorf("%s: exit %d: %s%s", what, code, stdout, stderr)
		}
	}
	// A copy of the folder is the same host a second time.
	twin, err := os.MkdirTemp("", "dals-e2e-copy-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(twin)
	for _, name := range []string{"keys", "registry.db", "record"} {
		if text, err := exec.Command("cp", "-a", filepath.Join(h.dir, name), twin).CombinedOutput(); err != nil {
			t.Fatalf("copy: %v: %s", err, text)
		}
	}
	refused("copied folder", "runs on another data folder", "--data-dir", twin)

	h.kill()
	checkpoint := filepath.Join(h.dir, "record", "checkpoint")
	if err := os.Rename(checkpoint, checkpoint+".away"); err != nil {
		t.Fatal(err)
	}
	refused("no checkpoint", "the checkpoint is gone")
	if err := os.Rename(checkpoint+".away", checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(h.dir, "keys", "host.seed"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("open seed", "mode 0644")
	if err := os.Chmod(filepath.Join(h.dir, "keys", "host.seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.mustSend("nora", "template.echo", map[string]string{"message": "after all"})
}

// TestInheritedDescriptors: what the host's parent left open reaches no worker.
func TestInheritedDescriptors(t *testing.T) {
	secret, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	h := &host{t: t, launcher: "process", extra: []*os.File{secret}}
	h.setup()
	nora := h.forge("nora", "template")
	for _, pid := range h.pids(nora.WorkerSerial) {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil || len(links) == 0 {
			t.Fatalf("descriptors of %d: %v, %v", pid, links, err)
		}
		for _, link := range links {
			if target, _ := os.Readlink(link); target == secret.Name() {
				t.Errorf("process %d has %s", pid, target)
			}
		}
	}
}

// spoil flips a bit in the middle of a file and gives the way back.
func spoil(t *testing.T, path string) (restore func()) {
	t.Helper()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	write := func(data []byte) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	write(bad)
	return func() { write(good) }
}
