package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/dals-host/dals-host/sdk/wire"
)

// IngressRequest is an HTTP request that came in by a worker's port.
type IngressRequest = wire.IngressRequest

// IngressResponse answers one. It is served as JSON or as bytes, never as a page.
type IngressResponse = wire.IngressAnswer

// Ingress makes the task that answers what comes in under a granted ingress:PATH: a
// type that asks for one has this task, made with the type's name. The host signs
// the envelope: it knows of who asked what IngressRequest.Peer says and no more. An
// answer without a status has 200. The text of an error stays with the host.
func Ingress(typeName, summary string, answer func(context.Context, IngressRequest) (IngressResponse, error)) Task {
	return processTask(ingress(answer), Kind{
		Kind: typeName + wire.IngressVerb, Summary: summary,
		Input: json.RawMessage(`{"type":"object","required":["method","path","body"],"properties":{"method":{"type":"string"},"path":{"type":"string"},` +
			`"query":{"type":"string"},"header":{"type":["object","null"]},"peer":{"type":"string"},"body":{"type":["string","null"]}}}`),
		Output: json.RawMessage(`{"type":"object","required":["status","json","body"],` +
			`"properties":{"status":{"type":"integer"},"json":{"type":"boolean"},"body":{"type":["string","null"]}}}`),
	})
}

type ingress func(context.Context, IngressRequest) (IngressResponse, error)

// ProcessTask reads the request and writes the answer.
func (i ingress) ProcessTask(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var r IngressRequest
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	a, err := i(ctx, r)
	if err != nil {
		return nil, err
	}
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	return json.Marshal(a)
}
