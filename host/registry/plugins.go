package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
)

// Descriptor is what a plugin binary said of its type when it was probed.
type Descriptor struct {
	Digest     string // hex SHA-256 of the binary
	Type       string
	Version    string
	Descriptor []byte // as the catalog encodes it
	ProbedAt   time.Time
}

// Type is a registered version of a worker type.
type Type struct {
	Name         string
	Version      string
	Digest       string // of a descriptor that the registry has
	OwnerUID     int    // of the file that brought it first
	RegisteredAt time.Time
}

// Quarantine says why a plugin binary is not used, and what helps.
type Quarantine struct {
	Digest string
	Reason string
	Fix    string
	At     time.Time
}

// PutDescriptor keeps a descriptor, in place of one with the same digest.
func (tx *Tx) PutDescriptor(d Descriptor) error {
	return tx.do("put descriptor "+d.Digest, func() error {
		return tx.q.PutDescriptor(tx.ctx, sqlcgen.PutDescriptorParams{
			Digest: d.Digest, Type: d.Type, Version: d.Version, Descriptor: present(d.Descriptor), ProbedAt: millis(d.ProbedAt),
		})
	})
}

// Descriptors lists all descriptors by type, version and digest.
func (r *Registry) Descriptors(ctx context.Context) ([]Descriptor, error) {
	rows, err := r.read.Descriptors(ctx)
	if err != nil {
		return nil, fmt.Errorf("list descriptors: %w", fault(err))
	}
	descriptors := make([]Descriptor, len(rows))
	for i, row := range rows {
		descriptors[i] = Descriptor{
			Digest: row.Digest, Type: row.Type, Version: row.Version, Descriptor: row.Descriptor, ProbedAt: instant(row.ProbedAt),
		}
	}
	return descriptors, nil
}

// PutType registers a version of a type, in place of the same version with
// another digest. A digest without a descriptor is worker.ErrInvalid.
func (tx *Tx) PutType(t Type) error {
	return tx.do(fmt.Sprintf("put type %s %s", t.Name, t.Version), func() error {
		return tx.q.PutType(tx.ctx, sqlcgen.PutTypeParams{
			Name: t.Name, Version: t.Version, Digest: t.Digest, OwnerUid: t.OwnerUID, RegisteredAt: millis(t.RegisteredAt),
		})
	})
}

// RemoveType removes a version of a type; its descriptor stays. No such version
// is no error.
func (tx *Tx) RemoveType(name, version string) error {
	return tx.do(fmt.Sprintf("remove type %s %s", name, version), func() error {
		return tx.q.DeleteType(tx.ctx, sqlcgen.DeleteTypeParams{Name: name, Version: version})
	})
}

// Types lists the registered versions of all types, by name and version as
// text.
func (r *Registry) Types(ctx context.Context) ([]Type, error) {
	rows, err := r.read.Types(ctx)
	if err != nil {
		return nil, fmt.Errorf("list types: %w", fault(err))
	}
	types := make([]Type, len(rows))
	for i, row := range rows {
		types[i] = Type{Name: row.Name, Version: row.Version, Digest: row.Digest, OwnerUID: row.OwnerUid, RegisteredAt: instant(row.RegisteredAt)}
	}
	return types, nil
}

// PutQuarantine keeps a binary out, in place of what was said of it before.
func (tx *Tx) PutQuarantine(q Quarantine) error {
	return tx.do("quarantine plugin "+q.Digest, func() error {
		return tx.q.PutQuarantined(tx.ctx, sqlcgen.PutQuarantinedParams{
			Digest: q.Digest, Reason: q.Reason, Fix: q.Fix, At: millis(q.At),
		})
	})
}

// RemoveQuarantine lets a binary in again. No such quarantine is no error.
func (tx *Tx) RemoveQuarantine(digest string) error {
	return tx.do("end quarantine of plugin "+digest, func() error { return tx.q.DeleteQuarantined(tx.ctx, digest) })
}

// Quarantines lists the binaries that are kept out, oldest first.
func (r *Registry) Quarantines(ctx context.Context) ([]Quarantine, error) {
	rows, err := r.read.Quarantined(ctx)
	if err != nil {
		return nil, fmt.Errorf("list quarantined plugins: %w", fault(err))
	}
	quarantines := make([]Quarantine, len(rows))
	for i, row := range rows {
		quarantines[i] = Quarantine{Digest: row.Digest, Reason: row.Reason, Fix: row.Fix, At: instant(row.At)}
	}
	return quarantines, nil
}
