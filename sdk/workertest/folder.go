package workertest

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/manifest"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/vault"
)

// makeFolder lays out a worker's folder as a forge does and says who it is.
func (h *host) makeFolder(t testing.TB, dir string, d *workerv1.TypeDescriptor, config []byte) *identity.Identity {
	t.Helper()
	key := newKey(t)
	id := h.newIdentity(d, key.Public().(ed25519.PublicKey))
	for _, name := range []string{"certs", "vault"} {
		makeDir(t, dir, name, 0o750)
	}
	for _, name := range []string{"state", "run", "logs"} {
		makeDir(t, dir, name, 0o700)
	}
	encoded, err := id.Encode()
	must(t, err)
	writeFile(t, dir, identity.File, encoded, 0o440)
	writeFile(t, dir, "config.json", config, 0o440)
	h.writeCertificate(t, dir, id, key)
	accountability, reflection, err := vault.Seed(h.id, id.WorkerSerial, h.emptyRecord(t), time.Now())
	must(t, err)
	writeFile(t, dir, vault.AccountabilityFile, accountability, 0o440)
	writeFile(t, dir, vault.ReflectionFile, reflection, 0o440)
	h.writeManifest(t, dir, id)
	return id
}

func (h *host) newIdentity(d *workerv1.TypeDescriptor, public ed25519.PublicKey) *identity.Identity {
	major, _, _ := strings.Cut(d.GetVersion(), ".")
	model := fmt.Sprintf("DMN-%s-%s", d.GetFamily(), major)
	return &identity.Identity{
		WorkerName:    "Test",
		WorkerType:    d.GetName(),
		TypeVersion:   d.GetVersion(),
		WorkerSerial:  model + "-0000abcd-00001",
		ModelNumber:   model,
		LedgerCode:    "A1-000001",
		ClassCode:     "A1",
		Port:          20001,
		PublicKey:     public,
		Glyph:         identity.Glyph(public),
		HostID:        h.id,
		StampKey:      h.stamp.Public().(ed25519.PublicKey),
		ManifestKey:   h.manifest.Public().(ed25519.PublicKey),
		CheckpointKey: h.checkpointKey,
		CreatedAt:     time.Now(),
	}
}

func (h *host) writeCertificate(t testing.TB, dir string, id *identity.Identity, key ed25519.PrivateKey) {
	t.Helper()
	cert, err := h.authority.IssueWorker(id.WorkerSerial, id.PublicKey, time.Now())
	must(t, err)
	keyPEM, err := identity.MarshalKey(key)
	must(t, err)
	writeFile(t, dir, "certs/ca.pem", h.authority.CertPEM(), 0o440)
	writeFile(t, dir, "certs/worker.pem", cert, 0o440)
	writeFile(t, dir, "certs/worker.key", keyPEM, 0o600)
}

// writeManifest signs the folder as it is.
func (h *host) writeManifest(t testing.TB, dir string, id *identity.Identity) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	files, err := manifest.Scan(root)
	must(t, err)
	m := &manifest.Manifest{
		Format:       manifest.Format,
		ForgeVersion: "2.0",
		WorkerName:   id.WorkerName,
		WorkerType:   id.WorkerType,
		TypeVersion:  id.TypeVersion,
		WorkerSerial: id.WorkerSerial,
		ModelNumber:  id.ModelNumber,
		LedgerCode:   id.LedgerCode,
		ClassCode:    id.ClassCode,
		Port:         id.Port,
		PublicKey:    id.PublicKey,
		Glyph:        id.Glyph,
		HostID:       id.HostID,
		CreatedAt:    id.CreatedAt,
		Files:        files,
	}
	encoded, err := m.Encode()
	must(t, err)
	writeFile(t, dir, manifest.File, encoded, manifest.FileMode)
	writeFile(t, dir, manifest.SignatureFile, manifest.Sign(h.manifest, encoded), manifest.FileMode)
}

func makeDir(t testing.TB, dir, name string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.Mkdir(path, mode))
	must(t, os.Chmod(path, mode)) // whatever the umask is
}

func writeFile(t testing.TB, dir, name string, data []byte, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, data, mode))
	must(t, os.Chmod(path, mode))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
