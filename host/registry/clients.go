package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
)

// Client is one who may send envelopes, known by its key.
type Client struct {
	ID        string // as envelope.ClientID makes it of PublicKey
	Name      string
	PublicKey []byte
	CreatedAt time.Time
	RevokedAt time.Time // zero while the client may send
}

// AddClient enrols a client. A name that another client has is
// worker.ErrConflict, and so is a key that was enrolled before, even if it was
// revoked: a revoked key stays out.
func (tx *Tx) AddClient(c Client) error {
	return tx.do("add client "+c.Name, func() error {
		if c.CreatedAt.IsZero() {
			c.CreatedAt = tx.now()
		}
		return tx.q.InsertClient(tx.ctx, sqlcgen.InsertClientParams{
			ID: c.ID, Name: c.Name, PublicKey: present(c.PublicKey), CreatedAt: millis(c.CreatedAt),
		})
	})
}

// RevokeClient revokes the client of that name and returns it; the name may be
// used again for another. No client of that name, or a revoked one, is
// worker.ErrNotFound.
func (tx *Tx) RevokeClient(name string, at time.Time) (c Client, err error) {
	err = tx.do("revoke client "+name, func() error {
		row, err := tx.q.RevokeClient(tx.ctx, sqlcgen.RevokeClientParams{Name: name, RevokedAt: millis(at)})
		c = clientOf(row)
		return err
	})
	return c, err
}

// Client is the client with that id, revoked or not, or worker.ErrNotFound.
func (tx *Tx) Client(id string) (c Client, err error) {
	err = tx.do("read client "+id, func() error {
		row, err := tx.q.Client(tx.ctx, id)
		c = clientOf(row)
		return err
	})
	return c, err
}

// Client is the client with that id, revoked or not, or worker.ErrNotFound.
func (r *Registry) Client(ctx context.Context, id string) (Client, error) {
	row, err := r.read.Client(ctx, id)
	if err != nil {
		return Client{}, fmt.Errorf("read client %s: %w", id, fault(err))
	}
	return clientOf(row), nil
}

// Clients lists all clients, revoked ones too, oldest first.
func (r *Registry) Clients(ctx context.Context) ([]Client, error) {
	rows, err := r.read.Clients(ctx)
	if err != nil {
		return nil, fmt.Errorf("list clients: %w", fault(err))
	}
	clients := make([]Client, len(rows))
	for i, row := range rows {
		clients[i] = clientOf(row)
	}
	return clients, nil
}

func clientOf(row sqlcgen.Client) Client {
	return Client{
		ID: row.ID, Name: row.Name, PublicKey: row.PublicKey,
		CreatedAt: instant(row.CreatedAt), RevokedAt: instant(row.RevokedAt),
	}
}
