package catalog

import (
	"context"
	"time"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Registry keeps what the catalog must not forget. Its methods are called from
// Run only. An error of a Save leaves the plugin waiting; it is tried again.
type Registry interface {
	// Verdicts are all that were saved.
	Verdicts(ctx context.Context) ([]Verdict, error)
	// Claims are all that were saved.
	Claims(ctx context.Context) ([]Claim, error)
	// SaveVerdict keeps v in place of an earlier one of its digest.
	SaveVerdict(ctx context.Context, v Verdict) error
	// SaveClaim keeps c, whose type and version nobody has claimed before. The
	// verdict of its digest was saved before.
	SaveClaim(ctx context.Context, c Claim) error
}

// Verdict is what came of the only probe of a binary: a descriptor, or why there
// is none.
type Verdict struct {
	Digest     string // hex SHA-256
	Descriptor *workerv1.TypeDescriptor
	Reason     string // both set exactly when Descriptor is nil
	Fix        string
	At         time.Time
}

// Claim is the first sight of a version of a type: from then on these bytes are
// that version, and the family is the type's.
type Claim struct {
	Type     string
	Version  string
	Family   string
	Digest   string // hex SHA-256
	OwnerUID int    // of the file that brought it
	At       time.Time
}

// Fault is why a binary is no good plugin. It is the binary's own, whatever the
// state of the host: it quarantines.
type Fault struct {
	Reason string // one line, for people
	Fix    string // what its author or the operator can do
}

// Error says the reason.
func (f *Fault) Error() string { return f.Reason }
