package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// What follows is for a registry that is made again: from the record, or from a
// backup that is older than what it replaces.

// metaLedgerFloor is where the sequences of classes begin that the registry has
// not seen.
const metaLedgerFloor = "ledger_floor"

// AppendPast is Append for an entry of an earlier time: its group counts as
// committed then. Entries come in the order of their times.
func (tx *Tx) AppendPast(entry []byte, at time.Time) (index uint64, err error) {
	index, err = tx.Append(entry)
	if err == nil && at.After(tx.batch.at) {
		tx.batch.at = at
	}
	return index, err
}

// SeenNumbers notes that a serial and a ledger code were given: neither is given
// again. An empty ledger code notes the serial alone.
func (tx *Tx) SeenNumbers(serial worker.Serial, code worker.LedgerCode) error {
	return tx.do(fmt.Sprintf("note numbers of %s", serial), func() error {
		if _, err := worker.ParseSerial(string(serial)); err != nil {
			return err
		}
		// The forms are checked: what Sscanf reads is there.
		var shard, counter int64
		tail := string(serial)[len(serial.Model())+1:]
		if _, err := fmt.Sscanf(tail, "%08x-%05x", &shard, &counter); err != nil {
			return fmt.Errorf("serial %s: %w", serial, worker.ErrInvalid)
		}
		if err := tx.q.SeenShard(tx.ctx, sqlcgen.SeenShardParams{Shard: shard, Used: counter + 1}); err != nil || code == "" {
			return err
		}
		class, sequence, err := worker.ParseLedgerCode(string(code))
		if err != nil {
			return err
		}
		return tx.q.SeenLedgerSequence(tx.ctx, sqlcgen.SeenLedgerSequenceParams{ClassCode: class, Last: sequence})
	})
}

// TakeUID notes that a uid is some worker's own. It is not given again until the
// worker that is inserted with it retires or is deleted.
func (tx *Tx) TakeUID(uid int) error {
	return tx.do(fmt.Sprintf("take uid %d", uid), func() error { return tx.q.TakeUID(tx.ctx, uid) })
}

// JumpCounters leaves out the next numbers: those that were given and then
// forgotten are not given again. Of the range of uids at most half of what was
// never given is left out; without a range (high 0) uids stay as they are.
func (tx *Tx) JumpCounters(by, low, high int) error {
	return tx.do("jump counters", func() error {
		if err := tx.q.JumpShards(tx.ctx, sqlcgen.JumpShardsParams{By: int64(by), Capacity: worker.SerialsPerShard}); err != nil {
			return err
		}
		if err := tx.q.JumpLedgerCounters(tx.ctx, int64(by)); err != nil {
			return err
		}
		if err := tx.raiseLedgerFloor(by); err != nil || high == 0 {
			return err
		}
		next, err := tx.freshUID(low, high)
		if errors.Is(err, worker.ErrExhausted) {
			return nil
		}
		if err != nil {
			return err
		}
		if last := next - 1 + min(by, (high-next+1)/2); last >= next {
			return tx.q.FreeUID(tx.ctx, sqlcgen.FreeUIDParams{Uid: last, FreeFrom: millis(tx.now())})
		}
		return nil
	})
}

func (tx *Tx) raiseLedgerFloor(by int) error {
	floor := 0
	value, err := tx.q.Meta(tx.ctx, metaLedgerFloor)
	if err == nil {
		floor, err = strconv.Atoi(value)
	}
	if err != nil && !errors.Is(fault(err), worker.ErrNotFound) {
		return err
	}
	return tx.q.SetMeta(tx.ctx, sqlcgen.SetMetaParams{Key: metaLedgerFloor, Value: strconv.Itoa(floor + by)})
}

// Snapshot writes the registry as it is at one moment to a new file, which is a
// registry of its own. Writers go on meanwhile. A file that is there is an error.
func (r *Registry) Snapshot(ctx context.Context, path string) error {
	// SQLite writes into an empty file, and would not make it 0600.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("copy registry: %w", err)
	}
	db, err := connections(r.path, copying)
	if err != nil {
		return fmt.Errorf("copy registry: %w", err)
	}
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", path)
	if err = errors.Join(fault(err), db.Close()); err != nil {
		return fmt.Errorf("copy registry: %w", err)
	}
	return nil
}
