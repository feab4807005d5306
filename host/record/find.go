package record

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/dals-host/dals-host/host/worker"
)

// Found is an entry that Find found.
type Found struct {
	Index uint64
	Kind  Kind
}

// Find are the entries about one envelope, newest first: its admission, its
// results, its refusals. It reads the whole record. None is a
// worker.ErrNotFound.
func Find(ctx context.Context, s Source, envelopeID string) ([]Found, error) {
	size, err := s.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("find envelope: %w", err)
	}
	var found []Found
	for r, err := range rows(ctx, s, 0, size) {
		if err != nil {
			return nil, fmt.Errorf("find envelope: %w", err)
		}
		if kind, ok := about(r.data, envelopeID); ok {
			found = append(found, Found{r.index, kind})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find envelope %.80q: %w", envelopeID, worker.ErrNotFound)
	}
	slices.Reverse(found)
	return found, nil
}

func about(line []byte, id string) (Kind, bool) {
	if !bytes.Contains(line, []byte(id)) {
		return "", false // most entries: not worth decoding
	}
	e, err := Decode(line)
	return e.Kind, err == nil && e.Envelope != nil && (e.Envelope.ID == id || e.Envelope.InReplyTo == id)
}
