package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/dals-host/dals-host/host/worker"
)

// schemas resolves each task's input schema once. Plugin digests never change
// their meaning, so nothing is ever dropped from it but with the host.
type schemas struct {
	kinds Kinds

	mu       sync.RWMutex
	resolved map[schemaKey]*jsonschema.Resolved
}

type schemaKey struct{ digest, kind string }

func newSchemas(kinds Kinds) *schemas {
	return &schemas{kinds: kinds, resolved: map[schemaKey]*jsonschema.Resolved{}}
}

// check refuses a kind that the worker does not know and a payload that does
// not fit the kind's schema.
func (s *schemas) check(ctx context.Context, w worker.Worker, kind string, payload []byte) error {
	schema, err := s.of(ctx, w.PluginDigest, kind)
	if errors.Is(err, worker.ErrNotFound) {
		return worker.Refuse(KindUnknown, "worker type %s %s has no task %s", w.Type, w.TypeVersion, kind)
	}
	if err != nil {
		return fmt.Errorf("resolve schema of %s: %w", kind, err)
	}
	var value any
	if err := json.Unmarshal(payload, &value); err != nil {
		return worker.Refuse(PayloadNotJSON, "the payload is not JSON: %s", syntaxFault(err))
	}
	if err := schema.Validate(value); err != nil {
		reason := fmt.Sprintf("the payload does not fit %s: %s", kind, mismatch(err))
		return &worker.Refusal{Code: SchemaMismatch, Reason: cutRunes(reason, maxReason)}
	}
	return nil
}

func (s *schemas) of(ctx context.Context, digest, kind string) (*jsonschema.Resolved, error) {
	key := schemaKey{digest, kind}
	s.mu.RLock()
	resolved := s.resolved[key]
	s.mu.RUnlock()
	if resolved != nil {
		return resolved, nil
	}
	text, err := s.kinds.InputSchema(ctx, digest, kind)
	if err != nil {
		return nil, err
	}
	schema := &jsonschema.Schema{} // of a task that takes anything
	if len(text) > 0 {
		if err := json.Unmarshal(text, schema); err != nil {
			return nil, err
		}
	}
	if resolved, err = schema.Resolve(nil); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resolved[key] = resolved
	return resolved, nil
}
