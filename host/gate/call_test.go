package gate

import (
	"crypto/ed25519"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// TestAdmitCall: a worker sends in its own name, to the types that it was
// granted, and passes every other check as a client does.
func TestAdmitCall(t *testing.T) {
	const good = `{"message":"hi"}`
	w := newWorld()
	client := w.enrol(t, "nora")
	public, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	caller := worker.Worker{Serial: "DMN-WD-1-deadbeef-00009", PublicKey: public, Grants: []string{"call:template", "egress:a.org:443"}}
	poor := caller
	poor.Grants = []string{"call:other", "call:template_x"}
	other := func(h *workerv1.Header) { h.Kind = "template.other" }
	g := w.gate(t)
	for _, test := range []struct {
		name   string
		caller worker.Worker
		env    *workerv1.Envelope
		code   string
	}{
		{"granted", caller, sign(t, stranger, good, nil), ""},
		{"not granted", poor, sign(t, stranger, good, nil), CallNotGranted},
		{"as a client", caller, sign(t, client, good, nil), SenderUnknown},
		{"another kind", caller, sign(t, stranger, good, other), KindUnknown},
		{"what does not fit", caller, sign(t, stranger, `{"message":1}`, nil), SchemaMismatch},
	} {
		a, err := g.AdmitCall(t.Context(), "worker", test.caller, test.env)
		if codeOf(err) != test.code || (a != nil) != (test.code == "") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	again := sign(t, stranger, good, nil)
	for i, code := range []string{"", Replayed} {
		if _, err := g.AdmitCall(t.Context(), "worker", caller, again); codeOf(err) != code {
			t.Errorf("time %d: %v", i, err)
		}
	}
	// By any other way a worker's key is nobody's.
	if _, err := g.Admit(t.Context(), "uid=0", sign(t, stranger, good, nil)); codeOf(err) != SenderUnknown {
		t.Errorf("as a client's: %v", err)
	}
	refused := 0
	for _, e := range w.entries {
		if e.Kind == record.Refused && e.Refusal.Code == CallNotGranted {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d refusals recorded", refused)
	}
}

// TestAdmitIngress: the host's own key is good for a granted path, and nothing
// else.
func TestAdmitIngress(t *testing.T) {
	w := newWorld()
	client := w.enrol(t, "nora")
	public, own, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := w.gate(t)
	for _, test := range []struct {
		name, grant, code string
		env               *workerv1.Envelope
	}{
		{"granted", "ingress:hooks", "", sign(t, own, `{"message":"hi"}`, nil)},
		{"not granted", "ingress:hooks/x", IngressNotGranted, sign(t, own, `{"message":"hi"}`, nil)},
		{"as a client", "ingress:hooks", SenderUnknown, sign(t, client, `{"message":"hi"}`, nil)},
		{"what does not fit", "ingress:hooks", SchemaMismatch, sign(t, own, `{}`, nil)},
	} {
		if _, err := g.AdmitIngress(t.Context(), "http", public, test.grant, test.env); codeOf(err) != test.code {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if _, err := g.Admit(t.Context(), "uid=0", sign(t, own, `{"message":"hi"}`, nil)); codeOf(err) != SenderUnknown {
		t.Errorf("as a client's: %v", err)
	}
}
