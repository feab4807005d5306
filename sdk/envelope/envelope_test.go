package envelope_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/proof"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

const (
	serial    = "DMN-TP-1-deadbeef-00001"
	otherID   = "0190a6a2-7c1e-7a7b-8000-0123456789ab"
	okPayload = `{"message":"hi"}`
)

func testKey(b byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), key
}

// request is a signed request, its header changed by edit before signing.
func request(t testing.TB, edit func(*workerv1.Header)) (*workerv1.Envelope, ed25519.PublicKey) {
	t.Helper()
	public, key := testKey(1)
	h := &workerv1.Header{Recipient: serial, Kind: "template.echo"}
	if edit != nil {
		edit(h)
	}
	e, err := envelope.New(key, envelope.ClientID(public), h, []byte(okPayload))
	if err != nil {
		t.Fatal(err)
	}
	return e, public
}

// forged signs whatever header edit makes of a good one, as a hostile sender can.
func forged(t testing.TB, edit func(*workerv1.Header)) *workerv1.Envelope {
	t.Helper()
	e, _ := request(t, nil)
	h := &workerv1.Header{}
	if err := proto.Unmarshal(e.Header, h); err != nil {
		t.Fatal(err)
	}
	edit(h)
	header, err := proto.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return seal(header, e.Payload)
}

func seal(header, payload []byte) *workerv1.Envelope {
	_, key := testKey(1)
	return &workerv1.Envelope{Header: header, Payload: payload, Proof: &workerv1.Proof{
		Kind: &workerv1.Proof_Signature{Signature: proof.Sign(proof.Envelope, key, header)},
	}}
}

func TestNewFillsDefaults(t *testing.T) {
	t.Parallel()
	given := &workerv1.Header{Recipient: serial, Kind: "template.echo"}
	public, key := testKey(1)
	before := time.Now().UnixMilli()
	e, err := envelope.New(key, envelope.ClientID(public), given, []byte(okPayload))
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.Parse(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := envelope.Verify(e, h, public); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(okPayload))
	want := &workerv1.Header{
		Version: 1, Id: h.Id, Sender: envelope.ClientID(public), Recipient: serial, Kind: "template.echo",
		IssuedUnixMs: h.IssuedUnixMs, ExpiresUnixMs: h.IssuedUnixMs + 30_000, PayloadSha256: sum[:],
		Encoding: workerv1.Encoding_ENCODING_PLAIN, ContentType: "application/json", Glyph: h.Glyph,
	}
	if diff := cmp.Diff(want, h, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if id, err := uuid.Parse(h.Id); err != nil || id.Version() != 7 {
		t.Errorf("id %s is not a UUIDv7", h.Id)
	}
	if h.IssuedUnixMs < before || h.IssuedUnixMs > time.Now().UnixMilli() {
		t.Errorf("issued at %d, called at %d", h.IssuedUnixMs, before)
	}
	if given.Id != "" || given.Sender != "" {
		t.Error("New wrote into the caller's header")
	}
	if sha256.Sum256(e.Header) != envelope.Hash(e) {
		t.Error("Hash is not the SHA-256 of the header bytes")
	}
}

func TestNewKeepsWhatIsSet(t *testing.T) {
	t.Parallel()
	want := &workerv1.Header{
		Version: 1, Id: otherID, Recipient: "pool:goat", Kind: "goat.feed", IssuedUnixMs: 1000, ExpiresUnixMs: 2000,
		Encoding: workerv1.Encoding_ENCODING_PLAIN, ContentType: "text/plain", IdempotencyKey: "k 1",
		Glyph: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	e, _ := request(t, func(h *workerv1.Header) { proto.Merge(h, want); h.Recipient, h.Kind = "pool:goat", "goat.feed" })
	h, err := envelope.Parse(e)
	if err != nil {
		t.Fatal(err)
	}
	h.Sender, h.PayloadSha256 = "", nil
	if diff := cmp.Diff(want, h, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestResult(t *testing.T) {
	t.Parallel()
	client, _ := testKey(1)
	public, key := testKey(2)
	e, err := envelope.New(key, serial, &workerv1.Header{
		Recipient: envelope.ClientID(client), Kind: "template.echo", InReplyTo: otherID, Attempt: 1,
		Status: workerv1.ResultStatus_RESULT_STATUS_OK,
	}, []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.Parse(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := envelope.Verify(e, h, public); err != nil {
		t.Error(err)
	}
	if err := envelope.Verify(e, h, client); !errors.Is(err, envelope.ErrBadProof) {
		t.Errorf("under the client's key: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	public, key := testKey(1)
	stranger, _ := testKey(2)
	me := envelope.ClientID(public)
	good := &workerv1.Header{Recipient: serial, Kind: "template.echo"}
	for name, call := range map[string]func() (*workerv1.Envelope, error){
		"no header":     func() (*workerv1.Envelope, error) { return envelope.New(key, me, nil, nil) },
		"sender's key":  func() (*workerv1.Envelope, error) { return envelope.New(key, envelope.ClientID(stranger), good, nil) },
		"sender's form": func() (*workerv1.Envelope, error) { return envelope.New(key, "operator", good, nil) },
		"payload":       func() (*workerv1.Envelope, error) { return envelope.New(key, me, good, make([]byte, 4<<20+1)) },
		"recipient": func() (*workerv1.Envelope, error) {
			return envelope.New(key, me, &workerv1.Header{Recipient: "nora", Kind: "a.b"}, nil)
		},
		"idempotency key": func() (*workerv1.Envelope, error) {
			return envelope.New(key, me, &workerv1.Header{Recipient: serial, Kind: "a.b", IdempotencyKey: "\xff"}, nil)
		},
	} {
		if e, err := call(); err == nil {
			t.Errorf("%s: made %v", name, e)
		}
	}
	if e, err := envelope.New(key, me, good, make([]byte, 4<<20)); err != nil || len(e.Payload) != 4<<20 {
		t.Errorf("a payload of exactly 4 MiB: %v", err)
	}
}

func TestParseRefusesForms(t *testing.T) {
	t.Parallel()
	stranger, _ := testKey(9)
	result := func(h *workerv1.Header) {
		h.Sender, h.Recipient, h.InReplyTo, h.Attempt = serial, h.Sender, otherID, 1
		h.Status = workerv1.ResultStatus_RESULT_STATUS_FAILED
	}
	for name, edit := range map[string]func(*workerv1.Header){
		"no version":            func(h *workerv1.Header) { h.Version = 0 },
		"version 2":             func(h *workerv1.Header) { h.Version = 2 },
		"no id":                 func(h *workerv1.Header) { h.Id = "" },
		"upper-case id":         func(h *workerv1.Header) { h.Id = strings.ToUpper(otherID) },
		"braced id":             func(h *workerv1.Header) { h.Id = "{" + otherID + "}" },
		"urn id":                func(h *workerv1.Header) { h.Id = "urn:uuid:" + otherID },
		"id without dashes":     func(h *workerv1.Header) { h.Id = strings.ReplaceAll(otherID, "-", "") },
		"id and a line":         func(h *workerv1.Header) { h.Id = otherID + "\n" },
		"no sender":             func(h *workerv1.Header) { h.Sender = "" },
		"sender's name":         func(h *workerv1.Header) { h.Sender = "nora" },
		"sender pool":           func(h *workerv1.Header) { h.Sender = "pool:goat" },
		"no recipient":          func(h *workerv1.Header) { h.Recipient = "" },
		"recipient's name":      func(h *workerv1.Header) { h.Recipient = "nora" },
		"recipient client":      func(h *workerv1.Header) { h.Recipient = envelope.ClientID(stranger) },
		"recipient lower-case":  func(h *workerv1.Header) { h.Recipient = strings.ToLower(serial) },
		"recipient two lines":   func(h *workerv1.Header) { h.Recipient = serial + "\nx" },
		"pool of nothing":       func(h *workerv1.Header) { h.Recipient = "pool:" },
		"pool's form":           func(h *workerv1.Header) { h.Recipient = "pool:Goat" },
		"no kind":               func(h *workerv1.Header) { h.Kind = "" },
		"kind without verb":     func(h *workerv1.Header) { h.Kind = "template" },
		"kind with two verbs":   func(h *workerv1.Header) { h.Kind = "a.b.c" },
		"kind as a path":        func(h *workerv1.Header) { h.Kind = "../x" },
		"no issued":             func(h *workerv1.Header) { h.IssuedUnixMs = 0 },
		"negative issued":       func(h *workerv1.Header) { h.IssuedUnixMs = -1 },
		"no expires":            func(h *workerv1.Header) { h.ExpiresUnixMs = 0 },
		"expires before issued": func(h *workerv1.Header) { h.ExpiresUnixMs = h.IssuedUnixMs - 1 },
		"expires at issued":     func(h *workerv1.Header) { h.ExpiresUnixMs = h.IssuedUnixMs },
		"expires never":         func(h *workerv1.Header) { h.ExpiresUnixMs = 1<<63 - 1 },
		"no hash":               func(h *workerv1.Header) { h.PayloadSha256 = nil },
		"short hash":            func(h *workerv1.Header) { h.PayloadSha256 = h.PayloadSha256[:31] },
		"long hash":             func(h *workerv1.Header) { h.PayloadSha256 = append(h.PayloadSha256, 0) },
		"no encoding":           func(h *workerv1.Header) { h.Encoding = 0 },
		"unknown encoding":      func(h *workerv1.Header) { h.Encoding = 2 },
		"no content type":       func(h *workerv1.Header) { h.ContentType = "" },
		"long content type":     func(h *workerv1.Header) { h.ContentType = strings.Repeat("a", 129) },
		"content type two":      func(h *workerv1.Header) { h.ContentType = "a\r\nb" },
		"no glyph":              func(h *workerv1.Header) { h.Glyph = "" },
		"zero glyph":            func(h *workerv1.Header) { h.Glyph = "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01" },
		"zero span":             func(h *workerv1.Header) { h.Glyph = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01" },
		"upper-case glyph":      func(h *workerv1.Header) { h.Glyph = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01" },
		"long idempotency key":  func(h *workerv1.Header) { h.IdempotencyKey = strings.Repeat("a", 129) },
		"reply in a request":    func(h *workerv1.Header) { h.InReplyTo = otherID },
		"attempt in a request":  func(h *workerv1.Header) { h.Attempt = 1 },
		"unknown status":        func(h *workerv1.Header) { result(h); h.Status = 4 },
		"negative status":       func(h *workerv1.Header) { result(h); h.Status = -1 },
		"client's result":       func(h *workerv1.Header) { result(h); h.Sender = h.Recipient },
		"result to a pool":      func(h *workerv1.Header) { result(h); h.Recipient = "pool:goat" },
		"result to nothing":     func(h *workerv1.Header) { result(h); h.InReplyTo = "" },
		"result of no attempt":  func(h *workerv1.Header) { result(h); h.Attempt = 0 },
	} {
		h, err := envelope.Parse(forged(t, edit))
		if h != nil || codeOf(err) != envelope.CodeMalformed {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	if _, err := envelope.Parse(forged(t, result)); err != nil {
		t.Errorf("the result that the table starts from: %v", err)
	}
}

func TestParseRefusesBytes(t *testing.T) {
	t.Parallel()
	good, _ := request(t, nil)
	sealed := func(header []byte) *workerv1.Envelope { return seal(header, good.Payload) }
	// Field 2 (id), two bytes that are no UTF-8.
	badUTF8 := append(bytes.Clone(good.Header), 0x12, 0x02, 0xff, 0xfe)
	unsigned := proto.CloneOf(good)
	unsigned.Proof = nil
	short := proto.CloneOf(good)
	short.Proof = &workerv1.Proof{Kind: &workerv1.Proof_Signature{Signature: make([]byte, 63)}}
	otherProof := &workerv1.Proof{}
	if err := proto.Unmarshal([]byte{0x12, 0x01, 0x00}, otherProof); err != nil { // a kind of proof yet to come
		t.Fatal(err)
	}
	later := proto.CloneOf(good)
	later.Proof = otherProof
	for name, c := range map[string]struct {
		e    *workerv1.Envelope
		code string
	}{
		"nothing":           {nil, "malformed"},
		"empty":             {&workerv1.Envelope{}, "malformed"},
		"truncated header":  {sealed(good.Header[:len(good.Header)-1]), "malformed"},
		"noise":             {sealed([]byte("not a header")), "malformed"},
		"bad UTF-8":         {sealed(badUTF8), "malformed"},
		"oversize header":   {sealed(append(bytes.Clone(good.Header), make([]byte, 8<<10)...)), "malformed"},
		"oversize payload":  {seal(good.Header, make([]byte, 4<<20+1)), "payload_too_large"},
		"no proof":          {unsigned, "malformed"},
		"short proof":       {short, "malformed"},
		"proof of the next": {later, "malformed"},
	} {
		if h, err := envelope.Parse(c.e); h != nil || codeOf(err) != c.code {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	unknownField := append(bytes.Clone(good.Header), 0xfa, 0x3f, 0x01, 'x')
	if _, err := envelope.Parse(sealed(unknownField)); err != nil {
		t.Errorf("a field of a later version: %v", err)
	}
}

func TestVerifyFindsTampering(t *testing.T) {
	t.Parallel()
	e, public := request(t, nil)
	h, err := envelope.Parse(e)
	if err != nil {
		t.Fatal(err)
	}
	for i := range e.Header {
		bad := proto.CloneOf(e)
		bad.Header[i] ^= 1
		if err := envelope.Verify(bad, h, public); !errors.Is(err, envelope.ErrBadProof) {
			t.Fatalf("header byte %d: %v", i, err)
		}
	}
	stranger, _ := testKey(2)
	for name, c := range map[string]struct {
		edit   func(*workerv1.Envelope)
		public ed25519.PublicKey
	}{
		"payload":           {func(e *workerv1.Envelope) { e.Payload[0] ^= 1 }, public},
		"payload cut":       {func(e *workerv1.Envelope) { e.Payload = e.Payload[1:] }, public},
		"payload gone":      {func(e *workerv1.Envelope) { e.Payload = nil }, public},
		"proof":             {func(e *workerv1.Envelope) { e.Proof.GetSignature()[40] ^= 1 }, public},
		"proof gone":        {func(e *workerv1.Envelope) { e.Proof = nil }, public},
		"header gone":       {func(e *workerv1.Envelope) { e.Header = nil }, public},
		"another signer":    {func(*workerv1.Envelope) {}, stranger},
		"no key":            {func(*workerv1.Envelope) {}, nil},
		"signed as a stamp": {func(e *workerv1.Envelope) { e.Proof = stampProof(e.Header) }, public},
	} {
		bad := proto.CloneOf(e)
		c.edit(bad)
		if err := envelope.Verify(bad, h, c.public); !errors.Is(err, envelope.ErrBadProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := envelope.Verify(e, h, public); err != nil {
		t.Errorf("the untouched one: %v", err)
	}
}

func stampProof(header []byte) *workerv1.Proof {
	_, key := testKey(1)
	return &workerv1.Proof{Kind: &workerv1.Proof_Signature{Signature: proof.Sign(proof.Stamp, key, header)}}
}

func TestClientID(t *testing.T) {
	t.Parallel()
	public, _ := testKey(1)
	id := envelope.ClientID(public)
	if got, err := envelope.ParseClientID(id); err != nil || !got.Equal(public) {
		t.Fatalf("%s: %v", id, err)
	}
	const last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	twin := id[:len(id)-1] + string(last[strings.IndexByte(last, id[len(id)-1])|1]) // a stray low bit
	for _, bad := range []string{
		"", "key:", id[4:], id + "=", id[:len(id)-1], id + "A", "KEY:" + id[4:], "key:" + id, id[:10] + "\n" + id[10:], twin,
		"key:" + strings.Repeat("+", 43),
	} {
		if _, err := envelope.ParseClientID(bad); err == nil {
			t.Errorf("ParseClientID(%q) has a key", bad)
		}
	}
}

func TestIsSerial(t *testing.T) {
	for _, is := range []string{serial, "DMN-TP-0-00000000-fffff", "DMN-ZZ-999999-0123abcd-00000"} {
		if !envelope.IsSerial(is) {
			t.Errorf("%s is a serial", is)
		}
	}
	for _, not := range []string{"", "nora", "DMN-TP-01-deadbeef-00001", "DMN-TP-1-DEADBEEF-00001", serial + "\n", " " + serial, "pool:template"} {
		if envelope.IsSerial(not) {
			t.Errorf("%q is no serial", not)
		}
	}
}

func TestFreshAt(t *testing.T) {
	t.Parallel()
	issued := time.UnixMilli(1_800_000_000_000)
	expires := issued.Add(30 * time.Second)
	h := func(expires time.Time) *workerv1.Header {
		return &workerv1.Header{IssuedUnixMs: issued.UnixMilli(), ExpiresUnixMs: expires.UnixMilli()}
	}
	ms := time.Millisecond
	for _, c := range []struct {
		name string
		h    *workerv1.Header
		at   time.Time
		code string
	}{
		{"at once", h(expires), issued, ""},
		{"by a clock behind", h(expires), issued.Add(-30 * time.Second), ""},
		{"by a clock too far behind", h(expires), issued.Add(-30*time.Second - ms), "not_yet_valid"},
		{"by a clock ahead", h(expires), expires.Add(30 * time.Second), ""},
		{"too late", h(expires), expires.Add(30*time.Second + ms), "expired"},
		{"for five minutes", h(issued.Add(5 * time.Minute)), issued, ""},
		{"for longer", h(issued.Add(5*time.Minute + ms)), issued, "ttl_too_long"},
		{"for ever", &workerv1.Header{IssuedUnixMs: 1, ExpiresUnixMs: 1<<63 - 1}, issued, "ttl_too_long"},
		{"no times", &workerv1.Header{}, issued, "expired"},
	} {
		if err := envelope.FreshAt(c.h, c.at); codeOf(err) != c.code {
			t.Errorf("%s: %v, want code %q", c.name, err, c.code)
		}
	}
}

// codeOf is the code of a FormatError, "" for none, and the text of any other.
func codeOf(err error) string {
	var f *envelope.FormatError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &f):
		return f.Code
	}
	return err.Error()
}
