package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestBackupAndRestore backs a host up while it works, loses all of it, and
// restores it: its workers run again, and nothing can be replayed.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel() // it waits for half a minute
	launchers(t, func(t *testing.T, h *host) {
		nora := h.forge("nora", "template")
		h.forge("otto", "ledger")
		old := h.signFor(4*time.Minute, nora.WorkerSerial)
		if _, err := h.client.SendEnvelope(t.Context(), old, time.Minute); err != nil {
			t.Fatal(err)
		}
		pass, file := filepath.Join(t.TempDir(), "pass"), filepath.Join(t.TempDir(), "host.backup")
		if err := os.WriteFile(pass, []byte("correct horse\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := h.keepSending("nora")
		stdout, stderr, code := h.run("backup", file, "--passphrase-file", pass, "--json")
		sent := stop()
		if code != 0 || sent == 0 {
			t.Fatalf("backup: exit %d, %d sent meanwhile: %s", code, sent, stderr)
		}
		var told struct {
			Workers int
			Entries uint64
		}
		if err := json.Unmarshal([]byte(stdout), &told); err != nil || told.Workers != 2 {
			t.Fatalf("backup says %s, %v", stdout, err)
		}
		later := h.forge("later", "template") // and lost
		// A kept checkpoint is of more than the backup has.
		head := filepath.Join(t.TempDir(), "head")
		h.eventually("the checkpoint covers all", h.published)
		copyFile(t, filepath.Join(h.dir, "record", "checkpoint"), head)

		h.lose()
		if _, stderr, code := h.run("restore", file, "--passphrase-file", pass, "--head", head); code != 1 || !strings.Contains(stderr, "it is rolled back") {
			t.Fatalf("restore behind a kept checkpoint: exit %d: %s", code, stderr)
		}
		if _, err := os.Stat(h.dir); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a refused restore left a folder: %v", err)
		}
		stdout, stderr, code = h.run("restore", file, "--passphrase-file", pass, "--json")
		if code != 0 {
			t.Fatalf("restore: exit %d: %s", code, stderr)
		}
		taken := refusedBefore(t, stdout)
		h.start()
		if _, err := h.client.SendEnvelope(t.Context(), old, time.Minute); codeOf(err) != "replayed" {
			t.Errorf("an envelope of before the backup: %v", err)
		}
		h.awaitTaken(taken)
		h.settled()
		h.mustSend("nora", "template.echo", map[string]string{"message": "again"})
		if w := h.worker("nora"); w.WorkerSerial != nora.WorkerSerial || w.PublicKey != nora.PublicKey {
			t.Errorf("restored %+v, was %+v", w, nora)
		}
		if _, err := h.client.Worker(t.Context(), "later"); codeOf(err) != client.CodeNotFound {
			t.Errorf("a worker of after the backup: %v", err)
		}
		h.drop("dals-worker-template")
		h.eventually("the type is forged again", func() error {
			_, err := h.client.Forge(t.Context(), client.ForgeRequest{Name: "fresh", Type: "template", ClassCode: "A1"})
			return err
		})
		if fresh := h.worker("fresh"); fresh.LedgerCode <= later.LedgerCode || fresh.WorkerSerial == later.WorkerSerial {
			t.Errorf("numbers of %+v are not after those of %+v", fresh, later)
		}
		h.verify()
	})
}

// TestProve proves an admission and its result, each with the log's key alone.
func TestProve(t *testing.T) {
	t.Parallel()
	h := newHost(t, "process")
	h.forge("nora", "template")
	sent := h.mustSend("nora", "template.echo", map[string]string{"message": "x"})
	h.eventually("the checkpoint covers all", h.published)
	stdout, stderr, code := h.run("vault", "prove", sent.ID, "--json")
	if code != 0 {
		t.Fatalf("prove: exit %d: %s", code, stderr)
	}
	var told struct {
		record.Proof
		ResultIndex *uint64       `json:"result_index"`
		Result      *record.Proof `json:"result"`
	}
	if err := json.Unmarshal([]byte(stdout), &told); err != nil || told.Result == nil || told.ResultIndex == nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	for kind, p := range map[record.Kind]record.Proof{record.Admitted: told.Proof, record.Result: *told.Result} {
		e, err := record.Decode([]byte(p.Entry))
		if err != nil || e.Kind != kind || e.Envelope.ID != sent.ID && e.Envelope.InReplyTo != sent.ID {
			t.Errorf("%s: %v, %s", kind, err, p.Entry)
		}
		if err := p.Check(h.verifier()); err != nil {
			t.Error(err)
		}
	}
	if *told.ResultIndex != told.Result.Index || told.Index >= told.Result.Index {
		t.Errorf("admitted at %d, result at %d and %d", told.Index, *told.ResultIndex, told.Result.Index)
	}
	if stdout, _, _ := h.run("vault", "prove", sent.ID); !strings.Contains(stdout, "result leaf hash") || strings.Count(stdout, "checkpoint ") < 2 {
		t.Errorf("in text:\n%s", stdout)
	}
	stdout, _, _ = h.run("vault", "prove", fmt.Sprint(told.Index), "--json")
	if strings.Contains(stdout, `"result"`) || !strings.Contains(stdout, `"leaf_hash"`) {
		t.Errorf("of an index: %s", stdout)
	}
}

// verifier is of the host's checkpoints, by the key that is in its folder.
func (h *host) verifier() note.Verifier {
	h.t.Helper()
	keys, err := keyring.Open(keyring.Config{Dir: filepath.Join(h.dir, "keys")})
	if err != nil {
		h.t.Fatal(err)
	}
	v, err := note.NewVerifier(keys.CheckpointKey())
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// signFor signs an envelope that is valid for long.
func (h *host) signFor(ttl time.Duration, serial string) *workerv1.Envelope {
	h.t.Helper()
	key := h.operator()
	env, err := envelope.New(key, envelope.ClientID(key.Public().(ed25519.PublicKey)), &workerv1.Header{
		Recipient: serial, Kind: "template.echo", ExpiresUnixMs: time.Now().Add(ttl).UnixMilli(),
	}, []byte(`{"message":"old"}`))
	if err != nil {
		h.t.Fatal(err)
	}
	return env
}

// keepSending sends to a worker until it is stopped, and says how often.
func (h *host) keepSending(name string) (stop func() int64) {
	ctx, cancel := context.WithCancel(h.t.Context())
	var busy sync.WaitGroup
	var sent atomic.Int64
	for range 4 {
		busy.Go(func() {
			for ctx.Err() == nil {
				_, err := h.client.Send(ctx, client.SendRequest{Worker: name, Kind: "template.echo", Input: map[string]string{"message": "x"}})
				if err == nil {
					sent.Add(1)
				}
			}
		})
	}
	return func() int64 { cancel(); busy.Wait(); return sent.Load() }
}

// lose takes away all that a machine has of a host. Only a host can end what its
// launcher runs.
func (h *host) lose() {
	h.t.Helper()
	h.kill()
	h.start()
	if _, stderr, code := h.run("down", "--timeout", "2s"); code != 0 {
		h.t.Fatalf("down: exit %d: %s\n%s", code, stderr, h.log)
	}
	_ = h.cmd.Wait()
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Fatal(err)
	}
}

// published says whether the checkpoint covers all entries.
func (h *host) published() error {
	status, err := h.client.Status(h.t.Context())
	if err == nil && status.CheckpointSize < status.RecordSize {
		err = fmt.Errorf("%d of %d entries", status.CheckpointSize, status.RecordSize)
	}
	return err
}

// refusedBefore is when envelopes are taken from, as a command said.
func refusedBefore(t *testing.T, document string) time.Time {
	t.Helper()
	var said struct {
		RefusedBefore time.Time `json:"refused_before"`
	}
	if err := json.Unmarshal([]byte(document), &said); err != nil || said.RefusedBefore.IsZero() {
		t.Fatalf("%v in %s", err, document)
	}
	return said.RefusedBefore
}

// awaitTaken waits until fresh envelopes are taken again; before they are not.
func (h *host) awaitTaken(from time.Time) {
	h.t.Helper()
	if time.Until(from) > time.Second {
		if _, err := h.send("nora", "template.echo", map[string]string{"message": "early"}); codeOf(err) != "replayed" {
			h.t.Errorf("an envelope from before the recovery's end: %v", err)
		}
	}
	time.Sleep(time.Until(from.Add(10 * time.Millisecond))) // what is waited for is the time itself
}

func readKey(t testing.TB, file string) ed25519.PrivateKey {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.ParseKey(data)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRecover destroys the registry of a host that was killed while its workers
// run on, and makes it again.
func TestRecover(t *testing.T) {
	t.Parallel() // it waits for half a minute
	launchers(t, func(t *testing.T, h *host) {
		nora := h.forge("nora", "template")
		h.forge("otto", "ledger")
		h.forge("gone", "template")
		h.forge("halted", "template")
		keyFile := filepath.Join(t.TempDir(), "ci.key")
		for _, args := range [][]string{{"retire", "gone"}, {"stop", "halted"}, {"client", "add", "ci", "--key-out", keyFile}, {"client", "revoke", "ci"}} {
			if _, stderr, code := h.run(args...); code != 0 {
				t.Fatalf("%v: exit %d: %s", args, code, stderr)
			}
		}
		h.mustSend("nora", "template.echo", map[string]string{"message": "before"})
		old := h.signFor(4*time.Minute, nora.WorkerSerial)
		if _, err := h.client.SendEnvelope(t.Context(), old, time.Minute); err != nil {
			t.Fatal(err)
		}
		h.eventually("the checkpoint covers all", h.published)
		h.kill()
		before, pids := h.rows(), h.pids(nora.WorkerSerial)

		path := filepath.Join(h.dir, "registry.db")
		h.fold()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for what, damaged := range map[string][]byte{
			"cut off": data[:len(data)/2], "empty": nil, "garbage": bytes.Repeat([]byte("no database "), 4096),
			"a page overwritten": append(append(bytes.Clone(data[:4096]), bytes.Repeat([]byte{0xa5}, 4096)...), data[8192:]...),
		} {
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			stdout, stderr, code := h.run("serve", "--launcher", h.launcher)
			if lines := strings.Count(stderr, "\n"); code != 1 || stdout != "" || lines != 2 || !strings.Contains(stderr, "hint: run dals-host recover") {
				t.Errorf("%s: exit %d: %s%s", what, code, stdout, stderr)
			}
		}

		stdout, stderr, code := h.run("recover", "--json")
		if code != 0 {
			t.Fatalf("recover: exit %d: %s%s", code, stdout, stderr)
		}
		taken := refusedBefore(t, stdout)
		if diff := cmp.Diff(before, h.rows()); diff != "" {
			t.Errorf("rows (-before +after):\n%s", diff)
		}
		h.start()
		if after := h.pids(nora.WorkerSerial); !slices.Equal(pids, after) {
			t.Errorf("processes %v, were %v: the worker was not found again", after, pids)
		}
		if _, err := h.client.SendEnvelope(t.Context(), old, time.Minute); codeOf(err) != "replayed" {
			t.Errorf("an envelope of before the recovery: %v", err)
		}
		h.awaitTaken(taken)
		h.mustSend("nora", "template.echo", map[string]string{"message": "after"})
		if _, err := h.dial(readKey(t, keyFile)).Send(t.Context(), client.SendRequest{Worker: "nora", Kind: "template.echo", Input: map[string]string{"message": "x"}}); codeOf(err) != "sender_revoked" {
			t.Errorf("a revoked client after the recovery: %v", err)
		}
		fresh := h.forge("fresh", "template")
		if fresh.LedgerCode != "A1-001005" {
			t.Errorf("the next ledger code is %s", fresh.LedgerCode)
		}
		if w := h.worker("halted"); w.State != "stopped" {
			t.Errorf("a stopped worker is %s", w.State)
		}
		if n := h.count(func(e record.Entry) bool { return e.Kind == record.Recovered }); n != 1 {
			t.Errorf("%d recoveries recorded", n)
		}
		h.verify()
	})
}

// fold puts the registry's log of changes, which a killed host leaves, into its
// file: with the log alone it could be read.
func (h *host) fold() {
	h.t.Helper()
	r, err := registry.Open(h.t.Context(), registry.Config{Path: filepath.Join(h.dir, "registry.db")})
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// rows is what the registry of a host that does not run says.
func (h *host) rows() map[string]any {
	h.t.Helper()
	r, err := registry.OpenReadOnly(h.t.Context(), filepath.Join(h.dir, "registry.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	workers, err1 := r.Workers(h.t.Context(), registry.Filter{IncludeRetired: true})
	clients, err2 := r.Clients(h.t.Context())
	types, err3 := r.Types(h.t.Context())
	deliveries, err4 := r.Deliveries(h.t.Context(), "")
	descriptors, err5 := r.Descriptors(h.t.Context())
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		h.t.Fatal(err)
	}
	for i := range descriptors {
		descriptors[i].ProbedAt = time.Time{} // the record has the time of the registration
	}
	operator, err := r.Meta(h.t.Context(), "operator_enrolled")
	if err != nil {
		h.t.Fatal(err)
	}
	return map[string]any{"workers": workers, "clients": clients, "types": types, "deliveries": deliveries, "descriptors": descriptors, "operator": operator}
}

// TestUnreadableWorker: whatever is wrong with what one worker has, the host
// starts, the others serve, and somebody is told.
func TestUnreadableWorker(t *testing.T) {
	launchers(t, func(t *testing.T, h *host) {
		dir := func(w client.Worker) string { return filepath.Join(h.dir, "workers", "instances", w.WorkerSerial) }
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		spoils := []struct {
			name  string
			spoil func(w client.Worker)
			says  string
		}{
			{"config-folder", func(w client.Worker) {
				must(os.Remove(dir(w) + "/config.json"))
				must(os.Mkdir(dir(w)+"/config.json", 0o700))
			}, "config.json"},
			{"manifest-garbage", func(w client.Worker) { must(os.WriteFile(dir(w)+"/worker_manifest.json", []byte("x"), 0o440)) }, "worker_manifest.json"},
			{"manifest-folder", func(w client.Worker) {
				must(os.Remove(dir(w) + "/worker_manifest.json"))
				must(os.Mkdir(dir(w)+"/worker_manifest.json", 0o700))
			}, "worker_manifest.json"},
			{"no-folder", func(w client.Worker) { must(os.RemoveAll(dir(w))) }, "folder"},
			{"a-file", func(w client.Worker) { must(os.RemoveAll(dir(w))); must(os.WriteFile(dir(w), nil, 0o600)) }, "folder"},
			{"no-key", func(w client.Worker) { must(os.Remove(dir(w) + "/certs/worker.key")) }, "certs/worker.key"},
			{"row-garbage", func(w client.Worker) {
				h.change(w, func(row *worker.Worker) {
					row.Config, row.PublicKey, row.Glyph, row.ManifestSHA256 = []byte("{"), []byte{1}, "", "x"
				})
			}, "public_key"},
			{"row-binary", func(w client.Worker) { h.change(w, func(row *worker.Worker) { row.PluginDigest = "../../x" }) }, "plugin"},
		}
		for _, s := range spoils {
			h.forge(s.name, "template")
		}
		h.forge("nora", "template")
		made := map[string]client.Worker{}
		for _, s := range spoils {
			made[s.name] = h.worker(s.name)
		}
		h.kill()
		for _, s := range spoils {
			s.spoil(made[s.name])
		}
		h.start()
		h.mustSend("nora", "template.echo", map[string]string{"message": "still"})
		h.eventually("every spoiled worker says so", func() error {
			for _, s := range spoils {
				w, err := h.client.Worker(t.Context(), s.name)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				if w.VaultIntegrity || !strings.Contains(w.VaultFault+w.StateReason, s.says) {
					return fmt.Errorf("%s is %s (%s), vault %t: %s", s.name, w.State, w.StateReason, w.VaultIntegrity, w.VaultFault)
				}
			}
			return nil
		})
		stdout, _, _ := h.run("doctor")
		listed, stderr, code := h.run("workers")
		if code != 0 {
			t.Errorf("workers: exit %d: %s", code, stderr)
		}
		for _, s := range spoils {
			if !strings.Contains(stdout, s.name+": ") {
				t.Errorf("doctor does not name %s:\n%s", s.name, stdout)
			}
			if !strings.Contains(listed, s.name) {
				t.Errorf("workers does not list %s:\n%s", s.name, listed)
			}
		}
		h.mustSend("nora", "template.echo", map[string]string{"message": "and still"})
	})
}

// change changes a row behind the back of a host that does not run.
func (h *host) change(w client.Worker, change func(*worker.Worker)) {
	h.t.Helper()
	r, err := registry.Open(h.t.Context(), registry.Config{Path: filepath.Join(h.dir, "registry.db")})
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	err = r.Update(h.t.Context(), func(tx *registry.Tx) error {
		row, err := tx.Worker(worker.Serial(w.WorkerSerial))
		if err != nil {
			return err
		}
		change(&row)
		return tx.UpdateWorker(row)
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// TestKilledRestoreAndRecover: a kill in the middle of either leaves what was
// there, or what it makes.
func TestKilledRestoreAndRecover(t *testing.T) {
	t.Parallel()
	h := newHost(t, "process")
	h.forge("nora", "template")
	file := filepath.Join(t.TempDir(), "host.backup")
	if _, stderr, code := h.run("backup", file); code != 0 {
		t.Fatalf("backup: exit %d: %s", code, stderr)
	}
	h.eventually("the checkpoint covers all", h.published)
	h.kill()
	h.fold()
	restored := h.killedAlong(func(killed func(args ...string)) bool {
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"host.seed", "operator.key"} {
			copyFile(t, filepath.Join(h.dir, "keys", name), filepath.Join(dir, "keys", name))
		}
		killed("--data-dir", dir, "restore", file)
		if _, err := os.Stat(filepath.Join(dir, "registry.db")); err == nil {
			if _, stderr, code := h.run("vault", "verify", "--data-dir", dir); code != 0 {
				t.Errorf("a half restored folder: %s", stderr)
			}
			return true
		}
		if _, stderr, code := h.run("restore", file, "--data-dir", dir); code != 3 { // without workers' keys
			t.Errorf("restore after a killed one: exit %d: %s", code, stderr)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		return false
	})
	recovered := h.killedAlong(func(killed func(args ...string)) bool {
		if err := os.WriteFile(filepath.Join(h.dir, "registry.db"), []byte("no database"), 0o600); err != nil {
			t.Fatal(err)
		}
		killed("recover")
		stdout, stderr, code := h.run("recover", "--json")
		if code != 0 {
			t.Fatalf("recover after a killed one: exit %d: %s", code, stderr)
		}
		return strings.Contains(stdout, `"rebuilt": false`)
	})
	t.Logf("of %d each, %d restores and %d recoveries had come through", killRounds, restored, recovered)
	h.start()
	h.verify()
}

const killRounds = 8

// killedAlong has a command run once to its end, and then killed at moments
// spread over the time that it took. It says how often it had come through.
func (h *host) killedAlong(round func(killed func(args ...string)) bool) (through int) {
	h.t.Helper()
	after := time.Hour
	var took time.Duration
	command := func(args ...string) {
		began := time.Now()
		cmd := exec.Command(filepath.Join(bin, "dals-host"), append([]string{"--data-dir", h.dir}, args...)...)
		if err := cmd.Start(); err != nil {
			h.t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		took = time.Since(began)
	}
	if !round(command) {
		h.t.Error("a command that nobody killed had not come through")
	}
	whole := took
	for i := range killRounds {
		after = whole * time.Duration(i+1) / (killRounds + 1)
		if round(command) {
			through++
		}
	}
	return through
}

// TestRecoverLabels: what containerd says that containers were made from, and the
// containers that it has, are compared with the record.
func TestRecoverLabels(t *testing.T) {
	t.Parallel()
	h := newHost(t, "containerd")
	nora := h.forge("nora", "template")
	h.forge("otto", "template")
	h.eventually("the checkpoint covers all", h.published)
	h.kill()
	socket, namespace := filepath.Join(h.dir, "containerd", "containerd.sock"), "dals-"+h.id
	const stray = "DMN-ZZ-1-00000000-00000"
	wrong := strings.Repeat("0", 64)
	if err := errors.Join(
		ctr(socket, namespace, "containers", "label", nora.WorkerSerial, "dals.digest="+wrong),
		ctr(socket, namespace, "containers", "create", "--rootfs", "--label", "dals.host="+h.id, rootfs(t), stray, "/program"),
		os.Remove(filepath.Join(h.dir, "registry.db")),
	); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := h.run("recover")
	for _, want := range []string{`labelled with binary "` + wrong + `"; the record says "`, stray} {
		if !strings.Contains(stdout, want) {
			t.Errorf("recover does not tell of %s: exit %d: %s%s", want, code, stdout, stderr)
		}
	}
	if code != 3 || strings.Contains(stdout, "otto") {
		t.Errorf("recover: exit %d: %s%s", code, stdout, stderr)
	}
	if err := ctr(socket, namespace, "containers", "delete", stray); err != nil {
		t.Error(err)
	}
	h.start()
}
