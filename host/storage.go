package host

import (
	"context"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// How far the record's files may be behind the registry before nothing more is
// taken on that would have to be recorded.
const (
	maxLagEntries = 100_000
	maxLag        = time.Minute
	// tellLag is from when on the host tells of it.
	tellLag = 5 * time.Second
)

// checkRecord refuses new work while the record cannot follow.
func (h *Host) checkRecord() error { return lagFault(h.record.Lag()) }

func lagFault(entries uint64, age time.Duration) error {
	if entries <= maxLagEntries && age <= maxLag {
		return nil
	}
	return worker.Hint(fmt.Errorf("the record is %d entries and %s behind: %w", entries, age.Round(time.Second), worker.ErrUnavailable),
		"see that the data folder's disk has space and works (dals-host doctor); the host goes on by itself")
}

// probeLimit bounds the attempt to write after one has failed.
const probeLimit = 2 * time.Second

// storageFaults names what cannot be written at the moment. Where the last write
// to the registry failed it tries another: nobody else may.
func (h *Host) storageFaults(ctx context.Context) (faults []string) {
	if h.registry.Fault() != nil {
		ctx, cancel := context.WithTimeout(ctx, probeLimit)
		defer cancel()
		err := h.registry.Update(ctx, func(tx *registry.Tx) error { return tx.SetMeta(metaProbe, time.Now().UTC().Format(time.RFC3339Nano)) })
		if err != nil {
			faults = append(faults, fmt.Sprintf("registry: %v", err))
		}
	}
	if entries, age := h.record.Lag(); entries > maxLagEntries || entries > 0 && age > tellLag {
		faults = append(faults, fmt.Sprintf("record: %d entries not published since %s", entries, age.Round(time.Second)))
	}
	return faults
}
