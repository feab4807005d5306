package client

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Type is one version of a worker type.
type Type struct {
	Name         string          `json:"name"`
	Version      string          `json:"version"`
	Digest       string          `json:"digest"` // hex SHA-256 of the plugin binary
	Family       string          `json:"family"`
	Summary      string          `json:"summary"`
	Tasks        []Task          `json:"tasks"`
	Capabilities []string        `json:"capabilities"`
	Workers      int             `json:"workers"`            // living workers of this version
	Draining     bool            `json:"draining,omitempty"` // the binary is gone
	ConfigSchema json.RawMessage `json:"config_schema,omitempty"`
}

// Task is one kind of task that a type's workers answer.
type Task struct {
	Kind         string          `json:"kind"`
	Summary      string          `json:"summary"`
	InputSchema  json.RawMessage `json:"input_schema"`
	OutputSchema json.RawMessage `json:"output_schema"`
}

// Plugin is one binary that the host has seen.
type Plugin struct {
	Path    string `json:"path"`
	Digest  string `json:"digest"`
	State   string `json:"state"`
	Type    string `json:"type"`
	Version string `json:"version"`
	Reason  string `json:"reason"` // why it is quarantined
	Fix     string `json:"fix"`    // what to do about it
}

// Types lists the registered worker types.
func (c *Client) Types(ctx context.Context) ([]Type, error) {
	resp, err := c.host.ListTypes(ctx, &hostv1.ListTypesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list types: %w", c.fault(ctx, err))
	}
	return convert(resp.GetTypes(), typeFromProto), nil
}

// Type finds a worker type by name: of several versions the highest whose
// binary is there.
func (c *Client) Type(ctx context.Context, name string) (Type, error) {
	types, err := c.Types(ctx)
	if err != nil {
		return Type{}, err
	}
	var found *Type
	var names []string
	for i, t := range types {
		names = append(names, t.Name)
		if t.Name == name && (found == nil || better(t, *found)) {
			found = &types[i]
		}
	}
	if found == nil {
		slices.Sort(names)
		return Type{}, &Error{
			Code: CodeNotFound, Message: fmt.Sprintf("worker type '%s' is not registered", name),
			Hint: "registered are: " + strings.Join(slices.Compact(names), ", "),
		}
	}
	return *found, nil
}

func better(a, b Type) bool {
	if a.Draining != b.Draining {
		return b.Draining
	}
	return semver.Compare("v"+a.Version, "v"+b.Version) > 0
}

// Plugins lists every binary that the host has seen, the quarantined too.
func (c *Client) Plugins(ctx context.Context) ([]Plugin, error) {
	resp, err := c.host.ListPlugins(ctx, &hostv1.ListPluginsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list plugins: %w", c.fault(ctx, err))
	}
	return convert(resp.GetPlugins(), func(p *hostv1.Plugin) Plugin {
		return Plugin{
			Path: p.GetPath(), Digest: p.GetDigest(), State: p.GetState(),
			Type: p.GetType(), Version: p.GetVersion(), Reason: p.GetReason(), Fix: p.GetFix(),
		}
	}), nil
}

func typeFromProto(t *hostv1.WorkerType) Type {
	return Type{
		Name: t.GetName(), Version: t.GetVersion(), Digest: t.GetDigest(),
		Family: t.GetFamily(), Summary: t.GetSummary(),
		Tasks:        convert(t.GetTasks(), taskFromProto),
		Capabilities: append([]string{}, t.GetCapabilities()...),
		Workers:      int(t.GetWorkers()), Draining: t.GetDraining(),
		ConfigSchema: document(t.GetConfigSchema()),
	}
}

func taskFromProto(k *workerv1.TaskKind) Task {
	return Task{
		Kind: k.GetKind(), Summary: k.GetSummary(),
		InputSchema: document(k.GetInputSchema()), OutputSchema: document(k.GetOutputSchema()),
	}
}
