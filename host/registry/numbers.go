package registry

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// AllocateSerial gives the next serial, for a worker of that model. The host
// counts in a shard that it drew at random, and draws another when the shard is
// full. A serial is never given again.
func (tx *Tx) AllocateSerial(m worker.ModelNumber) (serial worker.Serial, err error) {
	err = tx.do("allocate serial", func() error {
		next, err := tx.q.NextInShard(tx.ctx, worker.SerialsPerShard)
		if errors.Is(fault(err), worker.ErrNotFound) {
			if err := tx.drawShard(); err != nil {
				return err
			}
			next, err = tx.q.NextInShard(tx.ctx, worker.SerialsPerShard)
		}
		if err != nil {
			return err
		}
		serial = worker.NewSerial(m, uint32(next.Shard), int(next.Used-1))
		return nil
	})
	return serial, err
}

// ensureShard draws the first shard, so that a plan sees the serials that a forge
// will get.
func (tx *Tx) ensureShard() error {
	return tx.do("draw shard", func() error {
		n, err := tx.q.CountShards(tx.ctx)
		if err != nil || n > 0 {
			return err
		}
		return tx.drawShard()
	})
}

// drawShard draws a shard that this host has not had.
func (tx *Tx) drawShard() error {
	for {
		var b [4]byte
		rand.Read(b[:])
		n, err := tx.q.InsertShard(tx.ctx, int64(binary.BigEndian.Uint32(b[:])))
		if err != nil || n == 1 {
			return err
		}
	}
}

// AllocateLedgerCode gives the class's next ledger code, from 1. A ledger code
// is never given again.
func (tx *Tx) AllocateLedgerCode(c worker.ClassCode) (code worker.LedgerCode, err error) {
	err = tx.do(fmt.Sprintf("allocate ledger code of class %s", c), func() error {
		sequence, err := tx.q.NextLedgerSequence(tx.ctx, c)
		code = worker.NewLedgerCode(c, sequence)
		return err
	})
	return code, err
}

// AllocateUID gives the lowest uid from low to high, both included, that was
// given before and is free again, or else the one above the highest ever given.
// (The range is meant to stay: below one that grew downwards, uids stay unused.)
// The uid is taken until the worker that was inserted with it retires or is
// deleted. None left is worker.ErrExhausted.
func (tx *Tx) AllocateUID(low, high int) (uid int, err error) {
	err = tx.do("allocate uid", func() error {
		uid, err = tx.q.LowestFreeUID(tx.ctx, sqlcgen.LowestFreeUIDParams{Low: low, High: high, Now: millis(tx.now())})
		if errors.Is(fault(err), worker.ErrNotFound) {
			uid, err = tx.freshUID(low, high)
		}
		if err != nil {
			return err
		}
		return tx.q.TakeUID(tx.ctx, uid)
	})
	return uid, err
}

// freshUID is the uid above the highest ever given.
func (tx *Tx) freshUID(low, high int) (int, error) {
	highest, err := tx.q.HighestUID(tx.ctx, sqlcgen.HighestUIDParams{Low: low, High: high})
	switch {
	case errors.Is(fault(err), worker.ErrNotFound):
		highest = low - 1
	case err != nil:
		return 0, err
	}
	if highest >= high {
		return 0, worker.Hint(fmt.Errorf("all of %d to %d are in use: %w", low, high, worker.ErrExhausted),
			"retire workers that are no longer needed")
	}
	return highest + 1, nil
}

// freeUID gives back the uid of a worker that has one of its own.
func (tx *Tx) freeUID(serial worker.Serial) error {
	return tx.q.FreeUIDOf(tx.ctx, sqlcgen.FreeUIDOfParams{FreeFrom: millis(tx.now()), Serial: serial})
}

// HoldUID has a uid that AllocateUID gave be no worker's own yet: TakeUID makes it
// that, FreeHeldUID gives it back.
func (tx *Tx) HoldUID(uid int) error {
	return tx.do(fmt.Sprintf("hold uid %d", uid), func() error { return tx.q.HoldUID(tx.ctx, uid) })
}

// FreeHeldUID gives back a uid that is held, if it is.
func (tx *Tx) FreeHeldUID(uid int) error {
	return tx.do(fmt.Sprintf("free uid %d", uid), func() error {
		return tx.q.FreeHeldUID(tx.ctx, sqlcgen.FreeHeldUIDParams{FreeFrom: millis(tx.now()), Uid: uid})
	})
}

// HeldUIDs lists the uids that are held.
func (r *Registry) HeldUIDs(ctx context.Context) ([]int, error) {
	uids, err := r.read.HeldUIDs(ctx)
	if err != nil {
		return nil, fmt.Errorf("list held uids: %w", fault(err))
	}
	return uids, nil
}

// PortTaken says whether a worker that is not retired has the port, or it is in
// quarantine.
func (r *Registry) PortTaken(ctx context.Context, port int) (bool, error) {
	taken, err := r.read.PortTaken(ctx, sqlcgen.PortTakenParams{Port: port, Now: millis(time.Now())})
	if err != nil {
		return false, fmt.Errorf("look up port %d: %w", port, fault(err))
	}
	return taken != 0, nil
}

// QuarantinePort keeps a port from being used again before a time.
func (tx *Tx) QuarantinePort(port int, until time.Time) error {
	return tx.do(fmt.Sprintf("quarantine port %d", port), func() error {
		if err := tx.q.EndPortQuarantines(tx.ctx, millis(tx.now())); err != nil {
			return err
		}
		return tx.q.QuarantinePort(tx.ctx, sqlcgen.QuarantinePortParams{Port: port, Until: millis(until)})
	})
}
