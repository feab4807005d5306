package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func someWorker() worker.Worker {
	return worker.Worker{
		Serial: "DMN-TP-1-deadbeef-00001", Name: "nora", Type: "template", TypeVersion: "1.2.3",
		PluginDigest: "ab12", ClassCode: "A1", Model: "DMN-TP-1", LedgerCode: "A1-000001", Port: 20001, UID: 70001,
		Launcher: "process", PublicKey: []byte{1, 2, 3}, ManifestSHA256: "cd34", ImageDigest: "sha256:ef",
		Config: []byte(`{ "a": 1, "b": "<&>" }`), RequestSHA256: "9876", Limits: worker.Limits{MemoryBytes: 64 << 20, PIDs: 64},
		CreatedAt: time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.FixedZone("", 3600)),
	}
}

func someEntries() []Entry {
	at := time.Date(2026, 11, 22, 16, 30, 0, 120987654, time.FixedZone("", -3600))
	env := &EnvelopeFields{
		ID: "0192-id", InReplyTo: "0192-other", Sender: "key:abc", Recipient: "DMN-TP-1-deadbeef-00001",
		WorkerSerial: "DMN-TP-1-deadbeef-00001", Kind: "template.echo", PayloadSHA256: "00ff", Size: 12,
		Header: []byte{0, 1, 2}, Signature: bytes.Repeat([]byte{9}, 64), AdmittedIndex: new(uint64(0)), Attempt: 1, Status: "ok",
	}
	admitted := &EnvelopeFields{ID: "0192-id", Header: []byte{1}, Deadline: time.Date(2026, 11, 22, 17, 31, 0, 0, time.UTC)}
	client := &ClientFields{Name: "operator", ID: "key:abc", PublicKey: []byte{1}}
	w := FieldsOf(someWorker())
	return []Entry{
		{At: at, Kind: Forge, Worker: w},
		{At: at, Kind: Void, Worker: &WorkerFields{Serial: w.Serial, Ledger: w.Ledger}, Reason: "stage: no <space>\nleft"},
		{At: at, Kind: Retire, Worker: w},
		{At: at, Kind: WorkerLost, Worker: w, Reason: "no heartbeat"},
		{At: at, Kind: WorkerRestarted, Worker: w},
		{At: at, Kind: WorkerStopped, Worker: w},
		{At: at, Kind: WorkerStarted, Worker: w},
		{At: at, Kind: Upgrade, Worker: w},
		{At: at, Kind: ClientAdded, Client: client},
		{At: at, Kind: ClientRevoked, Client: client},
		{At: at, Kind: Admitted, Envelope: admitted},
		{At: at, Kind: Result, Envelope: env},
		{At: at, Kind: Refused, Envelope: env, Refusal: &RefusalFields{Code: "replayed", Reason: "seen"}},
		{At: at, Kind: Refused, Refusal: &RefusalFields{Code: "kind_unknown"}},
		{At: at, Kind: RefusedSummary, Refusal: &RefusalFields{Code: "bad_proof", Peer: "uid 1000", Count: 17}},
		{At: at, Kind: HostStarted, Reason: "dals-host 2.0"},
		{At: at, Kind: Recovered, Recovery: &RecoveryFields{From: "backup", Jump: 1000, NotBefore: time.Date(2026, 11, 22, 17, 31, 0, 0, time.UTC)}, Reason: "17 entries"},
		{At: at, Kind: PluginDescribed, Plugin: &PluginFields{Digest: "ab", Descriptor: []byte{1}}},
		{At: at, Kind: PluginRegistered, Plugin: &PluginFields{Path: "/p", Digest: "ab", Type: "template", Version: "1.0.0", OwnerUID: 17, Descriptor: []byte{2}}},
		{At: at, Kind: PluginQuarantined, Plugin: &PluginFields{Path: "/p", Digest: "ab", Fix: "build it"}, Reason: "no ELF"},
	}
}

func TestEntryRoundTrip(t *testing.T) {
	t.Parallel()
	for _, e := range someEntries() {
		line, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(line, "\n") || !json.Valid(line) || !bytes.HasPrefix(line, []byte(`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"`+string(e.Kind)+`"`)) {
			t.Errorf("%s", line)
		}
		got, err := Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(again, line) {
			t.Errorf("%s\nbecomes\n%s, %v", line, again, err)
		}
		want := e
		want.V, want.At = 1, e.At.UTC().Truncate(time.Millisecond)
		if e.Worker != nil && e.Worker.Config != nil {
			w := *e.Worker
			w.Config, w.CreatedAt = json.RawMessage(`{"a":1,"b":"<&>"}`), w.CreatedAt.UTC().Truncate(time.Millisecond)
			want.Worker = &w
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
}

func TestEncodeLeavesTheCallersWorkerAlone(t *testing.T) {
	t.Parallel()
	w := FieldsOf(someWorker())
	before := w.CreatedAt
	if _, err := (Entry{At: before, Kind: Forge, Worker: w}).Encode(); err != nil {
		t.Fatal(err)
	}
	if w.CreatedAt != before {
		t.Error("changed")
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	at := time.Now()
	big := FieldsOf(someWorker())
	big.Config = json.RawMessage(`"` + strings.Repeat("x", MaxEntry) + `"`)
	for name, e := range map[string]Entry{
		"no kind":         {At: at},
		"unknown kind":    {At: at, Kind: "forged"},
		"no time":         {Kind: HostStarted},
		"no section":      {At: at, Kind: Forge},
		"another section": {At: at, Kind: Admitted, Client: &ClientFields{}},
		"one too many":    {At: at, Kind: Forge, Worker: &WorkerFields{}, Plugin: &PluginFields{}},
		"too big":         {At: at, Kind: Forge, Worker: big},
		"no JSON":         {At: at, Kind: Forge, Worker: &WorkerFields{Config: json.RawMessage("{")}},
		"year 20000":      {At: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), Kind: HostStarted},
	} {
		if line, err := e.Encode(); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%s: %.80s, %v", name, line, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	const good = `{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started"}`
	if _, err := Decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "{}", "null", good + "\n", good + good, " " + good,
		`{"v":2,"at":"2026-11-22T17:30:00.12Z","kind":"host_started"}`,
		`{"v":1,"at":"2026-11-22T17:30:00.120Z","kind":"host_started"}`,
		`{"v":1,"at":"2026-11-22T17:30:00.1234Z","kind":"host_started"}`,
		`{"v":1,"at":"2026-11-22T18:30:00.12+01:00","kind":"host_started"}`,
		`{"V":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started"}`,
		`{"v":1,"kind":"host_started","at":"2026-11-22T17:30:00.12Z"}`,
		`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started","reason":""}`,
		`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started","kind":"host_started"}`,
		`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started","more":1}`,
		`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"forge"}`,
		`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started","reason":"` + strings.Repeat("x", MaxEntry) + `"}`,
	} {
		if e, err := Decode([]byte(bad)); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("%.120s: %+v, %v", bad, e, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range someEntries() {
		line, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Add([]byte(`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"forge","worker":{"serial":"\ud800","config":[1e400]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Decode(line)
		if err != nil {
			return
		}
		again, err := e.encode()
		if err != nil || !bytes.Equal(again, line) {
			t.Fatalf("%q reads, and is written as %q, %v", line, again, err)
		}
	})
}

// FuzzEncode puts what others write into entries: it is recorded, and it is read.
func FuzzEncode(f *testing.F) {
	long := strings.Repeat("x", MaxText-1)
	for _, text := range []string{
		"", "plain", long + "é", long + "\xff", strings.Repeat("\xff", MaxText), strings.Repeat("\x00", 5000),
		"a\xc3", "<&>\u2028\ufffd", `\ufffd`, strings.Repeat("🐐", 300), strings.Repeat("…", 70_000),
	} {
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		name = name[:min(len(name), 500)]
		at := time.Now()
		w := someWorker()
		w.Name, w.Config = name, []byte(`{"a":"\ufffd"}`)
		for _, e := range []Entry{
			{At: at, Kind: Void, Worker: NameOf(w), Reason: text},
			{At: at, Kind: Forge, Worker: FieldsOf(w)},
			{At: at, Kind: ClientAdded, Client: &ClientFields{Name: text, ID: name}},
			{At: at, Kind: Refused, Envelope: &EnvelopeFields{ID: name, Header: []byte(name)}, Refusal: &RefusalFields{Code: text, Reason: text, Peer: text}},
			{At: at, Kind: PluginQuarantined, Plugin: &PluginFields{Path: text, Digest: name, Type: text, Version: text}, Reason: text},
		} {
			line, err := e.Encode()
			if err != nil {
				t.Fatalf("%s: %v", e.Kind, err)
			}
			if got, err := Decode(line); err != nil {
				t.Fatalf("%s is not read: %v", line, err)
			} else if text := Text(text); got.Reason != "" && got.Reason != text || len(text) > MaxText || !utf8.ValidString(text) {
				t.Fatalf("reason %q, want %q", got.Reason, text)
			}
		}
	})
}

func TestText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                               "",
		"as it is <é>":                   "as it is <é>",
		strings.Repeat("x", MaxText):     strings.Repeat("x", MaxText),
		strings.Repeat("x", MaxText+1):   strings.Repeat("x", MaxText-3) + "…",
		strings.Repeat("é", MaxText):     strings.Repeat("é", (MaxText-3)/2) + "…",
		"one\xff\xfe and \xc3":           "one\ufffd and \ufffd",
		strings.Repeat("a\xff", MaxText): strings.Repeat("a\ufffd", (MaxText-3)/4) + "a…",
	} {
		if got := Text(in); got != want {
			t.Errorf("%.40q… becomes\n%q, want\n%q", in, got, want)
		}
		if again := Text(want); again != want {
			t.Errorf("what was cut is cut again: %q", again)
		}
	}
}

// TestNameOf keeps secrets, and whatever has no bound, out of the entries that
// come by themselves.
func TestNameOf(t *testing.T) {
	t.Parallel()
	want := &WorkerFields{
		Name: "nora", Type: "template", Version: "1.2.3", Serial: "DMN-TP-1-deadbeef-00001",
		Model: "DMN-TP-1", Ledger: "A1-000001", Class: "A1",
	}
	if d := cmp.Diff(want, NameOf(someWorker())); d != "" {
		t.Error(d)
	}
}

// TestDecodeLongTexts reads what was written before texts had a bound.
func TestDecodeLongTexts(t *testing.T) {
	t.Parallel()
	reason := strings.Repeat("x", 2*MaxText)
	e, err := Decode([]byte(`{"v":1,"at":"2026-11-22T17:30:00.12Z","kind":"host_started","reason":"` + reason + `"}`))
	if err != nil || e.Reason != reason {
		t.Errorf("%v, %d bytes", err, len(e.Reason))
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	const id = "0192b1a0-0000-7000-8000-000000000001"
	s := newRows(500)
	s.change = map[uint64][]byte{}
	put := func(i uint64, e Entry) {
		e.At = time.Now()
		line, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.change[i] = line
	}
	put(3, Entry{Kind: Admitted, Envelope: &EnvelopeFields{ID: id}})
	put(300, Entry{Kind: Result, Envelope: &EnvelopeFields{ID: "other", InReplyTo: id}})
	put(301, Entry{Kind: Refused, Envelope: &EnvelopeFields{ID: id}, Refusal: &RefusalFields{Code: "replayed"}})
	put(302, Entry{Kind: HostStarted, Reason: "mentions " + id})
	got, err := Find(t.Context(), s, id)
	if d := cmp.Diff([]Found{{301, Refused}, {300, Result}, {3, Admitted}}, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if _, err := Find(t.Context(), s, "nobody"); !errors.Is(err, worker.ErrNotFound) {
		t.Error(err)
	}
}

func FuzzParseTile(f *testing.F) {
	for _, name := range []string{
		"tile/0/000", "tile/0/x001/x234/067.p/8", "tile/entries/273.p/112", "tile/63/000.p/255", "tile/64/000",
		"tile/0/000.p/256", "tile/0/000.p/0", "tile/0/x000/000", "tile//000", "tile/0", "checkpoint", "tile/entries/x.p/1",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, ok := parseTile(name)
		if ok && (p.path() != name || p.width < 1 || p.width > 256) {
			t.Fatalf("%q reads as %+v", name, p)
		}
	})
}

func TestFieldsOfEnvelope(t *testing.T) {
	t.Parallel()
	h := &workerv1.Header{
		Id: "i", InReplyTo: "o", Sender: "DMN-TP-1-deadbeef-00001", Recipient: "key:a", Kind: "template.echo",
		PayloadSha256: []byte{0, 255}, Attempt: 2, Status: workerv1.ResultStatus_RESULT_STATUS_FAILED,
	}
	env := &workerv1.Envelope{
		Header: []byte("signed bytes"), Payload: []byte("four"),
		Proof: &workerv1.Proof{Kind: &workerv1.Proof_Signature{Signature: []byte("signature")}},
	}
	want := &EnvelopeFields{
		ID: "i", InReplyTo: "o", Sender: "DMN-TP-1-deadbeef-00001", Recipient: "key:a", WorkerSerial: "DMN-TP-1-deadbeef-00001",
		Kind: "template.echo", PayloadSHA256: "00ff", Size: 4, Header: []byte("signed bytes"), Signature: []byte("signature"),
		Attempt: 2, Status: "failed",
	}
	if d := cmp.Diff(want, FieldsOfEnvelope(env, h, "DMN-TP-1-deadbeef-00001")); d != "" {
		t.Error(d)
	}
	if s := StatusWord(workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED); s != "" {
		t.Error(s)
	}
}
