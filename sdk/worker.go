package sdk

import (
	"context"
	"crypto/ed25519"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/identity"
	"github.com/dals-host/dals-host/sdk/vault"
)

// Worker is what a type's code knows of the worker that it runs in. It is safe
// for concurrent use.
type Worker struct {
	identity identity.Identity
	key      ed25519.PrivateKey
	dir      string
	grants   []capability.Capability
	log      hclog.Logger
}

// Identity says who the worker is.
func (w *Worker) Identity() identity.Identity { return w.identity }

// StateDir is the path of the one folder that a worker may write and that
// outlives it: restarts and upgrades, not retirement. "results" in it belongs
// to this package.
func (w *Worker) StateDir() string { return filepath.Join(w.dir, stateDir) }

// Logger writes to the worker's log.
func (w *Worker) Logger() hclog.Logger { return w.log }

// Grants says what of its type's Capabilities the worker was granted.
func (w *Worker) Grants() []string {
	texts := make([]string, len(w.grants))
	for i, g := range w.grants {
		texts[i] = g.String()
	}
	return texts
}

// NoteSigner signs notes (golang.org/x/mod/sumdb/note) as this worker: the name
// is its serial, the key its own. It signs text only, as notes are, and so can
// never be made to sign an envelope or anything else that the key vouches for.
func (w *Worker) NoteSigner() (note.Signer, error) {
	signer, err := vault.NoteSigner(w.identity.WorkerSerial, w.key)
	if err != nil {
		return nil, err
	}
	return noteSigner{Signer: signer}, nil
}

// CallInfo says on whose behalf a task runs.
type CallInfo struct {
	EnvelopeID string
	Sender     string // as in an envelope: key:<base64url> or a serial
	Kind       string
	Attempt    uint32 // from 1
	LogIndex   uint64 // of the admission, in the host's record
	Glyph      string // the trace, a W3C traceparent
}

type contextKey int

const (
	workerKey contextKey = iota
	callKey
)

// FromContext is the worker that runs a task. It is nil outside of a task.
func FromContext(ctx context.Context) *Worker {
	w, _ := ctx.Value(workerKey).(*Worker)
	return w
}

// Call says on whose behalf the task of ctx runs. It is zero outside of a task.
func Call(ctx context.Context) CallInfo {
	info, _ := ctx.Value(callKey).(CallInfo)
	return info
}
