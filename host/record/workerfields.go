package record

import (
	"encoding/json"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// WorkerFields are all that recovery needs to bring back a worker's row. Kinds
// other than Forge may leave out what they do not know.
type WorkerFields struct {
	Name           string             `json:"name,omitempty"`
	Type           string             `json:"type,omitempty"`
	Version        string             `json:"version,omitempty"`
	Serial         worker.Serial      `json:"serial"`
	Model          worker.ModelNumber `json:"model,omitempty"`
	Ledger         worker.LedgerCode  `json:"ledger,omitempty"`
	Class          worker.ClassCode   `json:"class,omitempty"`
	Port           int                `json:"port,omitempty"`
	UID            int                `json:"uid,omitempty"`
	Launcher       string             `json:"launcher,omitempty"`
	PublicKey      []byte             `json:"public_key,omitempty"`
	ManifestSHA256 string             `json:"manifest_sha256,omitempty"`
	ImageDigest    string             `json:"image_digest,omitempty"`
	PluginDigest   string             `json:"plugin_digest,omitempty"`
	RequestSHA256  string             `json:"request_sha256,omitempty"`
	Config         json.RawMessage    `json:"config,omitempty"` // compacted JSON
	Grants         []string           `json:"grants,omitempty"`
	Limits         *LimitFields       `json:"limits,omitempty"` // where others than its type's were asked for
	CreatedAt      time.Time          `json:"created_at,omitzero"`
}

// LimitFields are what a worker may use, where its forging asked for it.
type LimitFields struct {
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	CPUMillis   int64 `json:"cpu_millis,omitempty"`
	PIDs        int64 `json:"pids,omitempty"`
}

// Asked are the limits as they were asked for; nil fields are none.
func (f *LimitFields) Asked() worker.Limits {
	if f == nil {
		return worker.Limits{}
	}
	return worker.Limits(*f)
}

func limitFields(l worker.Limits) *LimitFields {
	if l == (worker.Limits{}) {
		return nil
	}
	f := LimitFields(l)
	return &f
}

// FieldsOf are all the fields of w, for the entry of its forging. The glyph is
// left out: it is drawn from the public key.
func FieldsOf(w worker.Worker) *WorkerFields {
	return &WorkerFields{
		Name: w.Name, Type: w.Type, Version: w.TypeVersion,
		Serial: w.Serial, Model: w.Model, Ledger: w.LedgerCode, Class: w.ClassCode,
		Port: w.Port, UID: w.UID, Launcher: w.Launcher, PublicKey: w.PublicKey,
		ManifestSHA256: w.ManifestSHA256, ImageDigest: w.ImageDigest,
		PluginDigest: w.PluginDigest, RequestSHA256: w.RequestSHA256,
		Config: json.RawMessage(w.Config), Grants: w.Grants, Limits: limitFields(w.Limits), CreatedAt: w.CreatedAt,
	}
}

// NameOf are the fields that say which worker an entry is about, for kinds that
// tell of one that the record knows already.
func NameOf(w worker.Worker) *WorkerFields {
	return &WorkerFields{
		Name: w.Name, Type: w.Type, Version: w.TypeVersion,
		Serial: w.Serial, Model: w.Model, Ledger: w.LedgerCode, Class: w.ClassCode,
	}
}
