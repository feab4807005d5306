package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/sdk/identity"
)

func sample() *identity.Identity {
	public, _ := testKey(2)
	host, _ := testKey(1)
	return &identity.Identity{
		WorkerName: "nora", WorkerType: "goat", TypeVersion: "1.2.3", WorkerSerial: goat, ModelNumber: "DMN-GT-1",
		LedgerCode: "A1-000001", ClassCode: "A1", Port: 20001, PublicKey: public, Glyph: identity.Glyph(public),
		HostID: hostA, StampKey: host, ManifestKey: host, CheckpointKey: "dals." + hostA + "/record+00000000+AQ==",
		CreatedAt: time.Date(2026, 11, 22, 16, 0, 0, 0, time.UTC),
	}
}

func TestIdentityFile(t *testing.T) {
	t.Parallel()
	want := sample()
	encoded, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.Decode(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, key := range []string{
		`"worker_name": "nora"`, `"worker_type": "goat"`, `"type_version": "1.2.3"`, `"worker_serial": "` + goat, `"model_number": "DMN-GT-1"`,
		`"ledger_code": "A1-000001"`, `"class_code": "A1"`, `"port": 20001`, `"public_key": "gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5Q="`,
		`"glyph": "+--[ED25519 256]--+\n`, `"host_id": "` + hostA, `"stamp_key": "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="`,
		`"manifest_key": "`, `"checkpoint_key": "`, `"created_at": "2026-11-22T16:00:00Z"`,
	} {
		if !bytes.Contains(encoded, []byte(key)) {
			t.Errorf("no %s in\n%s", key, encoded)
		}
	}
	later := bytes.Replace(encoded, []byte("{"), []byte(`{"of_a_later_host": 1,`), 1)
	if _, err := identity.Decode(later); err != nil {
		t.Errorf("a key of a later host: %v", err)
	}
}

func TestIdentityRefused(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*identity.Identity){
		"no serial":         func(i *identity.Identity) { i.WorkerSerial = "" },
		"no type":           func(i *identity.Identity) { i.WorkerType = "" },
		"no host":           func(i *identity.Identity) { i.HostID = "" },
		"no key":            func(i *identity.Identity) { i.PublicKey = nil },
		"short stamp key":   func(i *identity.Identity) { i.StampKey = i.StampKey[:31] },
		"long manifest key": func(i *identity.Identity) { i.ManifestKey = append(i.ManifestKey, 0) },
		"no checkpoint key": func(i *identity.Identity) { i.CheckpointKey = "" },
	} {
		i := sample()
		edit(i)
		if _, err := i.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "empty": "{}", "an array": "[]", "a long one": strings.Repeat(" ", 64<<10) + "{}",
	} {
		if _, err := identity.Decode([]byte(text)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	encoded, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded)
	f.Add([]byte(`{"public_key":"AA=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := identity.Decode(data)
		if err != nil {
			return
		}
		again, err := i.Encode()
		if err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		back, err := identity.Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(i, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	_, key := testKey(2)
	text, err := identity.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := identity.ParseKey(text); err != nil || !got.Equal(key) {
		t.Fatalf("the key does not come back: %v", err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(stranger)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"nothing":     nil,
		"noise":       []byte("noise"),
		"cut":         text[:len(text)/2],
		"a P-256 key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"as a CERT":   bytes.ReplaceAll(text, []byte("PRIVATE KEY"), []byte("CERTIFICATE")),
	} {
		if _, err := identity.ParseKey(bad); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	if _, err := identity.MarshalKey(key[:32]); err == nil {
		t.Error("half a key was written")
	}
}
