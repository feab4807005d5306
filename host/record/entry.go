package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dals-host/dals-host/host/worker"
)

// MaxEntry is the most bytes one encoded entry may have: tlog-tiles counts an
// entry's length in 16 bits.
const MaxEntry = 1<<16 - 1

// MaxText is the most bytes of a free text that an entry keeps.
const MaxText = 1000

// version is the format of entries that this package writes and reads.
const version = 1

// Kind says what an entry records.
type Kind string

// The kinds of entry. Each carries the section named after it and no other,
// except that a refusal may name the envelope it refused. What Forge told of a
// worker the later entries need not repeat, but for Upgrade: they name it, see
// NameOf.
const (
	Forge             Kind = "forge"              // Worker: a worker exists from now on
	Void              Kind = "void"               // Worker: its ledger code will never be used; with a reason
	Retire            Kind = "retire"             // Worker: it ended for good
	WorkerLost        Kind = "worker_lost"        // Worker: no sign of life; with a reason
	WorkerRestarted   Kind = "worker_restarted"   // Worker: it runs again
	WorkerFailed      Kind = "worker_failed"      // Worker: it is stopped and stays so; with a reason
	WorkerStopped     Kind = "worker_stopped"     // Worker: somebody ended it, and it stays so
	WorkerStarted     Kind = "worker_started"     // Worker: somebody started what was stopped or failed
	Upgrade           Kind = "upgrade"            // Worker: with all fields, in place of what Forge told of it
	ClientAdded       Kind = "client_added"       // Client
	ClientRevoked     Kind = "client_revoked"     // Client
	Admitted          Kind = "admitted"           // Envelope: passed the gate
	Result            Kind = "result"             // Envelope: a worker's signed answer
	Refused           Kind = "refused"            // Refusal, and Envelope: a no after the proof held
	RefusedSummary    Kind = "refused_summary"    // Refusal: how many before a proof held, by peer
	EgressOpened      Kind = "egress_opened"      // Worker and Egress: a connection of its own, before its first byte
	EgressClosed      Kind = "egress_closed"      // Worker and Egress: that has ended
	EgressRefused     Kind = "egress_refused"     // Worker and Refusal: how many connections, by code, and the reason of the first
	HostStarted       Kind = "host_started"       // no section; Reason tells the host's version
	Recovered         Kind = "recovered"          // Recovery: the registry was made again; Reason tells from what
	PluginDescribed   Kind = "plugin_described"   // Plugin: a part of a descriptor too long for one entry
	PluginRegistered  Kind = "plugin_registered"  // Plugin: with the (rest of the) descriptor
	PluginQuarantined Kind = "plugin_quarantined" // Plugin; with a reason
)

// Entry is one line of the record. It is encoded as one JSON object with the
// fields in this order; entries are never changed once appended.
type Entry struct {
	V        int             `json:"v"`
	At       time.Time       `json:"at"` // UTC, to the millisecond
	Kind     Kind            `json:"kind"`
	Worker   *WorkerFields   `json:"worker,omitempty"`
	Client   *ClientFields   `json:"client,omitempty"`
	Envelope *EnvelopeFields `json:"envelope,omitempty"`
	Refusal  *RefusalFields  `json:"refusal,omitempty"`
	Plugin   *PluginFields   `json:"plugin,omitempty"`
	Recovery *RecoveryFields `json:"recovery,omitempty"`
	Egress   *EgressFields   `json:"egress,omitempty"`
	Reason   string          `json:"reason,omitempty"`
}

// EnvelopeFields are enough to verify again who signed what: Header is the
// signed bytes and Signature the proof over them.
type EnvelopeFields struct {
	ID            string  `json:"id"`
	InReplyTo     string  `json:"in_reply_to,omitempty"` // on results: the envelope answered
	Sender        string  `json:"sender"`
	Recipient     string  `json:"recipient"`
	WorkerSerial  string  `json:"worker_serial,omitempty"` // who runs it, or ran it
	Kind          string  `json:"kind,omitempty"`
	PayloadSHA256 string  `json:"payload_sha256"` // hex
	Size          int64   `json:"size"`           // of the payload, in bytes
	Header        []byte  `json:"header"`
	Signature     []byte  `json:"signature"`
	AdmittedIndex *uint64 `json:"admitted_index,omitempty"` // on results: the entry of the admission
	Attempt       uint32  `json:"attempt,omitempty"`
	Status        string  `json:"status,omitempty"` // on results: ok, failed, refused
	// Deadline is, on admissions, when the worker's time is over.
	Deadline time.Time `json:"deadline,omitzero"`
	// CallerSerial is, on admissions, the worker that sent it, and Parent the
	// envelope that it worked on; empty where a client sent it.
	CallerSerial string `json:"caller_serial,omitempty"`
	Parent       string `json:"parent,omitempty"`
}

// ClientFields say who may send, or no longer.
type ClientFields struct {
	Name      string `json:"name"`
	ID        string `json:"id"` // key:<base64url>
	PublicKey []byte `json:"public_key"`
}

// EgressFields say where a worker has connected to, and what came of it.
type EgressFields struct {
	Host        string  `json:"host"` // as it was granted
	Port        int     `json:"port"`
	Address     string  `json:"address"`                // that was dialled, with the port
	OpenedIndex *uint64 `json:"opened_index,omitempty"` // at its end: the entry of its beginning
	Sent        uint64  `json:"sent,omitempty"`         // bytes, by the worker
	Received    uint64  `json:"received,omitempty"`     // bytes, by the worker
	Outcome     string  `json:"outcome,omitempty"`      // closed, aborted, idle or cut
}

// RefusalFields say what was refused and why. Before a proof holds the sender
// is a mere claim: Peer is then what the transport knows, and Count how many
// refusals the entry stands for.
type RefusalFields struct {
	Code   string `json:"code"`
	Reason string `json:"reason,omitempty"`
	Peer   string `json:"peer,omitempty"`
	Count  uint64 `json:"count,omitempty"`
}

// PluginFields name a plugin binary and say what the host made of it.
type PluginFields struct {
	Path     string `json:"path"`
	Digest   string `json:"digest"` // hex SHA-256
	Type     string `json:"type,omitempty"`
	Version  string `json:"version,omitempty"`
	OwnerUID int    `json:"owner_uid,omitempty"` // of the file that brought it first
	Fix      string `json:"fix,omitempty"`       // of a quarantine: what helps
	// Descriptor is what the binary said of its type, as the host keeps it. One
	// of more than MaxDescriptorPart bytes is the parts of the PluginDescribed
	// entries of that digest just before, and then this.
	Descriptor []byte `json:"descriptor,omitempty"`
}

// MaxDescriptorPart is the most bytes of a descriptor that one entry carries.
const MaxDescriptorPart = 40 << 10

// RecoveryFields say how the registry was made again. The numbers that are left
// out were never recorded as given, or as void.
type RecoveryFields struct {
	From      string    `json:"from"`                // record or backup
	Lost      uint64    `json:"lost,omitempty"`      // entries that were published and could not be used
	Jump      int       `json:"jump"`                // how many serials and ledger codes were left out
	NotBefore time.Time `json:"not_before,omitzero"` // envelopes issued before are refused
}

// Encode is the entry as it is appended: one line of JSON without its newline.
// V is filled in, times are cut to UTC milliseconds, and the texts that others
// than this host have a say in become what Text makes of them, so that no reason
// is too long or too strange to be recorded. An entry that misses its section or
// exceeds MaxEntry is a worker.ErrInvalid. What Encode writes, Decode reads.
func (e Entry) Encode() ([]byte, error) {
	return e.bounded().encode()
}

// bounded is the entry with its free texts as Text makes them.
func (e Entry) bounded() Entry {
	e.Reason = Text(e.Reason)
	if e.Refusal != nil {
		r := *e.Refusal
		r.Code, r.Reason, r.Peer = Text(r.Code), Text(r.Reason), Text(r.Peer)
		e.Refusal = &r
	}
	if e.Plugin != nil {
		p := *e.Plugin
		p.Path, p.Type, p.Version, p.Fix = Text(p.Path), Text(p.Type), Text(p.Version), Text(p.Fix)
		e.Plugin = &p
	}
	if e.Client != nil {
		c := *e.Client
		c.Name = Text(c.Name)
		e.Client = &c
	}
	return e
}

// Text is a free text as entries keep it: valid UTF-8, at most MaxText bytes,
// with an ellipsis where it was cut.
func Text(s string) string {
	const cut = "…"
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= MaxText {
		return s
	}
	end := MaxText - len(cut)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + cut
}

// encode writes the entry as it is, in the one form that it has.
func (e Entry) encode() ([]byte, error) {
	e.V = version
	e.At = e.At.UTC().Truncate(time.Millisecond)
	if e.Worker != nil {
		w := *e.Worker
		w.CreatedAt = w.CreatedAt.UTC().Truncate(time.Millisecond)
		e.Worker = &w
	}
	if e.Envelope != nil {
		env := *e.Envelope
		env.Deadline = env.Deadline.UTC().Truncate(time.Millisecond)
		e.Envelope = &env
	}
	if e.Recovery != nil {
		r := *e.Recovery
		r.NotBefore = r.NotBefore.UTC().Truncate(time.Millisecond)
		e.Recovery = &r
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	line, err := e.json()
	// Bytes that are not UTF-8 are written as this escape, but what is read from
	// it would be written out. Such a line is written as it will be read.
	if err == nil && bytes.Contains(line, []byte(`\ufffd`)) {
		var read Entry
		if err = json.Unmarshal(line, &read); err == nil {
			line, err = read.json()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w: %w", worker.ErrInvalid, err)
	}
	if len(line) > MaxEntry {
		return nil, fmt.Errorf("encode entry: %d bytes, at most %d: %w", len(line), MaxEntry, worker.ErrInvalid)
	}
	return line, nil
}

func (e Entry) json() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // the record is read by people, never by a browser as it is
	err := enc.Encode(e)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// Decode reads an entry as Encode wrote it. It is strict: unknown fields, other
// spellings of the same entry, or anything after it are a worker.ErrInvalid.
func Decode(line []byte) (Entry, error) {
	if len(line) > MaxEntry {
		return Entry{}, fmt.Errorf("decode entry: %d bytes, at most %d: %w", len(line), MaxEntry, worker.ErrInvalid)
	}
	var e Entry
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return Entry{}, fmt.Errorf("decode entry: %w: %w", worker.ErrInvalid, err)
	}
	if e.V != version {
		return Entry{}, fmt.Errorf("decode entry: version %d, want %d: %w", e.V, version, worker.ErrInvalid)
	}
	// One entry has one spelling, so that nobody can read two things in it.
	again, err := e.encode()
	if err != nil {
		return Entry{}, fmt.Errorf("decode entry: %w", err)
	}
	if !bytes.Equal(again, line) {
		return Entry{}, fmt.Errorf("decode entry: not in the form that is written: %w", worker.ErrInvalid)
	}
	return e, nil
}

// check says whether the entry has the sections of its kind, and only those.
func (e Entry) check() error {
	var w, c, env, ref, p, rec, out bool
	envOptional := false
	switch e.Kind {
	case Forge, Void, Retire, WorkerLost, WorkerRestarted, WorkerFailed, WorkerStopped, WorkerStarted, Upgrade:
		w = true
	case ClientAdded, ClientRevoked:
		c = true
	case Admitted, Result:
		env = true
	case Refused:
		ref, envOptional = true, true
	case RefusedSummary:
		ref = true
	case PluginRegistered, PluginQuarantined, PluginDescribed:
		p = true
	case Recovered:
		rec = true
	case EgressOpened, EgressClosed:
		w, out = true, true
	case EgressRefused:
		w, ref = true, true
	case HostStarted:
	default:
		return fmt.Errorf("kind %.40q: %w", e.Kind, worker.ErrInvalid)
	}
	if e.At.IsZero() {
		return fmt.Errorf("%s without a time: %w", e.Kind, worker.ErrInvalid)
	}
	env = env || envOptional && e.Envelope != nil
	if (e.Worker != nil) != w || (e.Client != nil) != c || (e.Envelope != nil) != env ||
		(e.Refusal != nil) != ref || (e.Plugin != nil) != p || (e.Recovery != nil) != rec || (e.Egress != nil) != out {
		return fmt.Errorf("%s with other sections than its own: %w", e.Kind, worker.ErrInvalid)
	}
	return nil
}
