package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// ForgeRequest asks for one worker.
type ForgeRequest struct {
	Name      string
	Type      string
	ClassCode string // A1 to Z999, or NNN.NNN.NNN
	Version   string // of the type; empty for the default one
	// Config is marshalled as the worker's config.json; nil for the defaults.
	Config any
	// DryRun plans and makes nothing.
	DryRun bool
	// PlanHash, when given, is that of a dry run: if anything that matters has
	// changed since, that is a conflict that names it, and nothing is made.
	PlanHash string
	// Like names a worker whose type, version, class code, config and grants hold
	// where this request leaves them empty.
	Like string
	// NoStart leaves the worker stopped.
	NoStart bool
	// Grants are what the worker may do beyond its own folder, of what its type
	// asks for (Type.Capabilities).
	Grants []string
	// Mounts are folders of the host's machine that the worker is shown, of what
	// its type asks for: SOURCE:PLACE, or SOURCE:PLACE:ro if it may only read. They
	// are among its Grants.
	Mounts []string
	// Limits are what the worker may use; zero fields are left to its type.
	Limits Limits
	// Timeout bounds the whole forge; zero means the host's default.
	Timeout time.Duration
}

// Forged is a worker that was made, was there, or with DryRun would be made.
type Forged struct {
	Worker

	// Existed says that the same request had made the worker before.
	Existed  bool   `json:"existed,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
	PlanHash string `json:"plan_hash,omitempty"`
	Plan     []Step `json:"plan,omitempty"`
	// Files are what a dry run says of the worker's files, and Manifest what it
	// says of worker_manifest.json, without what only forging knows.
	Files    []PlannedFile   `json:"files,omitempty"`
	Manifest json.RawMessage `json:"manifest,omitempty"`
}

// PlannedFile is a file of a plan, or a folder: its path ends in /.
type PlannedFile struct {
	Path   string `json:"path"`
	Mode   string `json:"mode"` // octal, as in 0440
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"` // hex; without it the file depends on keys, numbers or time
}

// Step is one step of the forge and what it would make.
type Step struct {
	Step  string `json:"step"`
	Makes string `json:"makes"`
}

// Forge makes one worker and returns it once its first heartbeat came, or
// leaves nothing behind. The same request again gives the same worker; another
// request for its name is an *Error with the code "conflict".
func (c *Client) Forge(ctx context.Context, r ForgeRequest) (Forged, error) {
	config, err := encode(r.Config)
	if err != nil {
		return Forged{}, fmt.Errorf("forge %s: encode config: %w", spoken(r.Name), err)
	}
	resp, err := c.host.Forge(ctx, &hostv1.ForgeRequest{
		WorkerName: r.Name, WorkerType: r.Type, ClassCode: r.ClassCode, TypeVersion: r.Version,
		Config: config, DryRun: r.DryRun, TimeoutMs: milliseconds(r.Timeout), PlanHash: r.PlanHash,
		Like: r.Like, NoStart: r.NoStart, Grants: r.Grants, Mounts: r.Mounts, Limits: r.Limits.proto(),
	})
	if err != nil {
		return Forged{}, fmt.Errorf("forge %s: %w", spoken(r.Name), c.fault(ctx, err))
	}
	return Forged{
		Worker: WorkerFromProto(resp.GetWorker()), Existed: resp.GetExisted(),
		DryRun: r.DryRun, PlanHash: resp.GetPlanHash(),
		Plan: convert(resp.GetPlan(), func(s *hostv1.PlanStep) Step {
			return Step{Step: s.GetStep(), Makes: s.GetMakes()}
		}),
		Files: convert(resp.GetFiles(), func(f *hostv1.PlanFile) PlannedFile {
			return PlannedFile{Path: f.GetPath(), Mode: f.GetMode(), Size: f.GetSize(), SHA256: f.GetSha256()}
		}),
		Manifest: document(resp.GetManifest()),
	}, nil
}

// spoken is a name as an error says it.
func spoken(name string) string {
	if name == "" {
		return `""`
	}
	return fmt.Sprintf("%.63s", name)
}

// encode is v as JSON; raw bytes are JSON already, and nil is nothing.
func encode(v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		return v, nil
	case []byte:
		return v, nil
	}
	return json.Marshal(v)
}
