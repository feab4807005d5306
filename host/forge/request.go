package forge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"golang.org/x/mod/semver"

	"github.com/dals-host/dals-host/host/worker"
)

// maxConfig keeps the entry that records a forge, which carries the
// configuration, well inside the record's limit for one entry.
const maxConfig = 32 << 10

// check is the part of a forge that changes nothing: is the request one that
// can be carried out, and what worker would it make?
func (f *Forge) check(ctx context.Context, r Request) (*job, error) {
	if err := worker.CheckName(r.Name); err != nil {
		return nil, err
	}
	class, err := worker.ParseClassCode(r.ClassCode)
	if err != nil {
		return nil, err
	}
	if r.Timeout == 0 {
		r.Timeout = DefaultTimeout
	}
	typ, err := f.Types.Lookup(ctx, r.Type, r.Version)
	if err != nil {
		return nil, err
	}
	config, err := configFor(typ, r.Config)
	if err != nil {
		return nil, err
	}
	d := typ.Descriptor
	return &job{request: r, class: class, typ: typ, worker: worker.Worker{
		Name: r.Name, Type: d.GetName(), TypeVersion: d.GetVersion(), PluginDigest: typ.Image.Digest,
		ClassCode: class, Model: worker.NewModelNumber(d.GetFamily(), generation(d.GetVersion())),
		State: worker.StateForging, Launcher: f.Launcher.Name(), Config: config, RequestSHA256: hashRequest(r),
	}}, nil
}

// generation is the major of a type version that the catalog has checked.
func generation(version string) int {
	var n int
	_, _ = fmt.Sscanf(semver.Major("v"+version), "v%d", &n)
	return n
}

// configFor is config.json: what the request gives over the type's defaults, as
// the type's schema allows it.
func configFor(t Type, given []byte) ([]byte, error) {
	config := map[string]any{}
	if len(given) > maxConfig {
		return nil, fmt.Errorf("config of %d bytes, at most %d: %w", len(given), maxConfig, worker.ErrInvalid)
	}
	if len(bytes.TrimSpace(given)) > 0 {
		if err := json.Unmarshal(given, &config); err != nil || config == nil {
			return nil, worker.Hint(fmt.Errorf("read config: not a JSON object: %w", worker.ErrInvalid), "give an object, as in {\"greeting\": \"hello\"}")
		}
	}
	schema := &jsonschema.Schema{}
	if err := json.Unmarshal(t.Descriptor.GetConfigSchema(), schema); err != nil {
		return nil, fmt.Errorf("read config schema of %s: %w", t.Descriptor.GetName(), err)
	}
	resolved, err := schema.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	if err != nil {
		return nil, fmt.Errorf("resolve config schema of %s: %w", t.Descriptor.GetName(), err)
	}
	if err := resolved.ApplyDefaults(&config); err != nil {
		return nil, fmt.Errorf("apply config defaults of %s: %w", t.Descriptor.GetName(), err)
	}
	if err := resolved.Validate(config); err != nil {
		return nil, worker.Hint(fmt.Errorf("config does not fit worker type %s: %w: %w", t.Descriptor.GetName(), err, worker.ErrInvalid),
			"run dals-host types --json to see its config_schema")
	}
	return json.Marshal(config)
}

// hashRequest identifies what was asked for, as it was asked for: a request
// that leaves the version open stays the same request when a newer version has
// become the default.
func hashRequest(r Request) string {
	config := map[string]any{}
	_ = json.Unmarshal(r.Config, &config) // checked by configFor
	canonical, _ := json.Marshal([]any{r.Type, r.Version, r.ClassCode, config})
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:])
}

// existing finds the worker that the same request made before. A worker of that
// name from another request is a conflict.
func (f *Forge) existing(ctx context.Context, asked worker.Worker) (Result, error) {
	w, err := f.Registry.WorkerByName(ctx, asked.Name)
	if errors.Is(err, worker.ErrNotFound) || err == nil && w.State == worker.StateRetired {
		return Result{}, nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("look up worker %s: %w", asked.Name, err)
	}
	switch {
	case w.State == worker.StateForging || w.State == worker.StateRetiring:
		return Result{}, worker.Hint(fmt.Errorf("worker %s is %s: %w", w.Name, w.State, worker.ErrConflict), "try again when it has ended, or use another name")
	case w.RequestSHA256 != asked.RequestSHA256:
		return Result{}, conflict(w, asked)
	}
	return Result{Worker: w, Existed: true}, nil
}

// conflict names the fields in which two requests for one name differ.
func conflict(has, asked worker.Worker) error {
	var differ []string
	compare := func(field, has, asked string) {
		if has != asked {
			differ = append(differ, fmt.Sprintf("%s is %s, asked for %s", field, has, asked))
		}
	}
	compare("worker_type", has.Type, asked.Type)
	compare("type_version", has.TypeVersion, asked.TypeVersion)
	compare("class_code", string(has.ClassCode), string(asked.ClassCode))
	compare("config", string(has.Config), string(asked.Config))
	if len(differ) == 0 {
		differ = []string{"the request spells its version or config differently"}
	}
	return worker.Hint(fmt.Errorf("worker %s exists with another request: %s: %w", has.Name, strings.Join(differ, "; "), worker.ErrConflict),
		"use another name, or retire "+has.Name+" first")
}
