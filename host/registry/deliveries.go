package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// Delivery is an envelope that was admitted and has no result yet.
type Delivery struct {
	EnvelopeID string
	Sender     string
	Serial     worker.Serial // whom it went to
	Attempt    uint32
	Header     []byte // the signed bytes
	AdmittedAt time.Time
	Deadline   time.Time
	LogIndex   uint64 // of the entry that admitted it
}

// PutDelivery keeps a delivery, in place of an earlier attempt at the same
// envelope. An attempt that is not above that one is worker.ErrConflict, and so
// is an envelope id that is outstanding for another sender at the same worker
// and attempt: a result could not tell them apart.
func (tx *Tx) PutDelivery(d Delivery) error {
	return tx.do("put delivery of envelope "+d.EnvelopeID, func() error {
		n, err := tx.q.PutDelivery(tx.ctx, sqlcgen.PutDeliveryParams{
			EnvelopeID: d.EnvelopeID, Sender: d.Sender, Serial: d.Serial, Attempt: d.Attempt, Header: present(d.Header),
			AdmittedAt: millis(d.AdmittedAt), Deadline: millis(d.Deadline), LogIndex: int64(d.LogIndex),
		})
		if err == nil && n == 0 {
			err = fmt.Errorf("attempt %d was made: %w", d.Attempt, worker.ErrConflict)
		}
		return err
	})
}

// TakeDelivery removes a delivery and returns it, so that one result is accepted
// for it. Where nothing is outstanding for that envelope at that worker and
// attempt, it is worker.ErrNotFound.
func (tx *Tx) TakeDelivery(envelopeID string, serial worker.Serial, attempt uint32) (d Delivery, err error) {
	err = tx.do("take delivery of envelope "+envelopeID, func() error {
		row, err := tx.q.TakeDelivery(tx.ctx, sqlcgen.TakeDeliveryParams{
			EnvelopeID: envelopeID, Serial: serial, Attempt: attempt,
		})
		d = deliveryOf(row)
		return err
	})
	return d, err
}

// Deliveries lists what is outstanding at a worker, or at all workers when
// serial is empty, in the order of admission.
func (r *Registry) Deliveries(ctx context.Context, serial worker.Serial) ([]Delivery, error) {
	var rows []sqlcgen.Delivery
	var err error
	if serial == "" {
		rows, err = r.read.AllDeliveries(ctx)
	} else {
		rows, err = r.read.DeliveriesOf(ctx, serial)
	}
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", fault(err))
	}
	deliveries := make([]Delivery, len(rows))
	for i, row := range rows {
		deliveries[i] = deliveryOf(row)
	}
	return deliveries, nil
}

func deliveryOf(row sqlcgen.Delivery) Delivery {
	return Delivery{
		EnvelopeID: row.EnvelopeID, Sender: row.Sender, Serial: row.Serial, Attempt: row.Attempt, Header: row.Header,
		AdmittedAt: instant(row.AdmittedAt), Deadline: instant(row.Deadline), LogIndex: uint64(row.LogIndex),
	}
}
