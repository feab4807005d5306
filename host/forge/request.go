package forge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"golang.org/x/mod/semver"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// maxConfig keeps the entry that records a forge, which carries the
// configuration, well inside the record's limit for one entry.
const maxConfig = 32 << 10

// check says whether the request has its form.
func (r Request) check() error {
	if err := worker.CheckName(r.Name); err != nil {
		return err
	}
	if _, err := worker.ParseClassCode(r.ClassCode); err != nil {
		return err
	}
	if err := r.Limits.Check(); err != nil {
		return err
	}
	return CheckWait("timeout", r.Timeout)
}

// normal is the request with its grants in order, each once, and the folders of
// its mounts found. A folder that is not given as a mount is none.
func (f *Forge) normal(r Request) (Request, error) {
	granted, err := capability.Set(r.Grants)
	if err != nil {
		return r, worker.Hint(fmt.Errorf("grant: %w: %w", err, worker.ErrInvalid), "run dals-host types to see what a type asks for")
	}
	for _, c := range granted {
		if c.Kind == capability.Mount {
			return r, worker.Hint(fmt.Errorf("grant %s: it does not say which folder: %w", c, worker.ErrInvalid), "use --mount SOURCE:"+c.Name+", with :ro behind it if it is only to be read")
		}
	}
	if r.Grants, err = capability.Normal(r.Grants); err != nil {
		return r, err
	}
	r.Mounts, err = f.grantMounts(r.Mounts)
	return r, err
}

// checkGrants refuses what the type does not ask for: a worker could not use it,
// and nobody would know why it has it.
func checkGrants(t Type, grants []string) error {
	for _, g := range grants {
		if capability.Asks(t.Descriptor.GetCapabilities(), g) {
			continue
		}
		hint := "it asks for none: leave out --grant and --mount"
		if asked := t.Descriptor.GetCapabilities(); len(asked) > 0 {
			hint = "it asks for " + strings.Join(asked, ", ")
		}
		return worker.Hint(fmt.Errorf("grant %s: %s %s does not ask for it: %w", g, t.Descriptor.GetName(), t.Descriptor.GetVersion(), worker.ErrInvalid), hint)
	}
	return nil
}

// newJob checks the request against its type and says what worker it would make.
// It changes nothing. The caller releases the job.
func (f *Forge) newJob(ctx context.Context, r Request) (_ *job, err error) {
	typ, release, err := f.lookup(ctx, r.Type, r.Version)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	config, err := configFor(typ, r.Config)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(checkGrants(typ, r.Grants), f.checkMounts(r.Grants)); err != nil {
		return nil, err
	}
	hash, err := r.hash()
	if err != nil {
		return nil, err
	}
	d := typ.Descriptor
	return &job{what: "forge", release: release, request: r, typ: typ, worker: worker.Worker{
		Name: r.Name, Type: d.GetName(), TypeVersion: d.GetVersion(), PluginDigest: typ.Image.Digest,
		ClassCode: worker.ClassCode(r.ClassCode), Model: modelOf(d),
		State: worker.StateForging, Launcher: f.Launcher.Name(), Config: config, Grants: r.Grants, Limits: r.Limits, RequestSHA256: hash,
	}}, nil
}

// modelOf is the model number of a type's workers.
func modelOf(d *workerv1.TypeDescriptor) worker.ModelNumber {
	return worker.NewModelNumber(d.GetFamily(), generation(d.GetVersion()))
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
	config, err := readConfig(given)
	if err != nil {
		return nil, err
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
	text, err := writeConfig(config)
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("config of %d bytes with the defaults of %s, at most %d: %w", len(text), t.Descriptor.GetName(), maxConfig, worker.ErrInvalid)
	}
	var value any // as the validator knows JSON
	if err := json.Unmarshal(text, &value); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if err := resolved.Validate(value); err != nil {
		return nil, worker.Hint(fmt.Errorf("config does not fit worker type %s: %w: %w", t.Descriptor.GetName(), err, worker.ErrInvalid),
			"run dals-host types --json to see its config_schema")
	}
	return text, nil
}

// readConfig reads a JSON object; nothing is an empty one. Numbers stay as they
// are written.
func readConfig(text []byte) (map[string]any, error) {
	if len(text) > maxConfig {
		return nil, fmt.Errorf("config of %d bytes, at most %d: %w", len(text), maxConfig, worker.ErrInvalid)
	}
	config := map[string]any{}
	if len(bytes.TrimSpace(text)) == 0 {
		return config, nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	err := dec.Decode(&config)
	if err == nil && (config == nil || dec.More()) {
		err = errors.New("not one object")
	}
	if err != nil {
		return nil, worker.Hint(fmt.Errorf("read config: not a JSON object: %w: %w", err, worker.ErrInvalid), `give an object, as in {"greeting": "hello"}`)
	}
	return config, nil
}

// writeConfig writes the same object always in the same way: on one line, keys
// in order.
func writeConfig(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // it is read by programs, never by a browser
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// hash identifies what was asked for, as it was asked for: a request that leaves
// the version open stays the same request when a newer version has become the
// default.
func (r Request) hash() (string, error) {
	config, err := readConfig(r.Config)
	if err != nil {
		return "", err
	}
	asked := []any{r.Type, r.Version, r.ClassCode, config}
	if len(r.Grants) > 0 { // without, a request is what it was before there were any
		asked = append(asked, r.Grants)
	}
	if r.Limits != (worker.Limits{}) {
		asked = append(asked, r.Limits)
	}
	text, err := writeConfig(asked)
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), err
}

// existing finds the worker that the same request made before. A worker of that
// name that is not what the request says, because it is from another one or was
// upgraded since, is a conflict that names the differing fields.
func (f *Forge) existing(ctx context.Context, r Request) (w worker.Worker, found bool, err error) {
	hash, err := r.hash()
	if err != nil {
		return worker.Worker{}, false, err
	}
	w, err = f.Registry.WorkerByName(ctx, r.Name)
	switch {
	case errors.Is(err, worker.ErrNotFound) || err == nil && w.State == worker.StateRetired:
		return worker.Worker{}, false, nil
	case err != nil:
		return worker.Worker{}, false, fmt.Errorf("look up worker %s: %w", r.Name, err)
	case w.State == worker.StateForging || w.State == worker.StateRetiring:
		return worker.Worker{}, false, worker.Hint(fmt.Errorf("what is left of an earlier worker %s cannot be removed at the moment: %w", w.Name, worker.ErrConflict),
			"the host goes on trying; until then use another name")
	}
	why, hint := "exists from another request", "use another name, or retire "+w.Name+" first"
	if w.RequestSHA256 == hash {
		why, hint = "was upgraded since this request made it", "use another name, or upgrade "+w.Name+" to what is asked for"
		r.Config = overlaid(w.Config, r.Config)
	}
	differ := f.differences(ctx, w, r)
	if len(differ) == 0 { // the same, perhaps in other words: the version or a default is spelt out
		return w, true, nil
	}
	return worker.Worker{}, false, worker.Hint(fmt.Errorf("worker %s %s: %s: %w", w.Name, why, strings.Join(differ, "; "), worker.ErrConflict), hint)
}

// overlaid is a worker's configuration with what a request gives in the place of
// its own: what the request leaves open may be anything.
func overlaid(has, given []byte) []byte {
	config, err := readConfig(has)
	if err != nil {
		return given
	}
	pinned, err := readConfig(given)
	if err != nil {
		return given
	}
	maps.Copy(config, pinned)
	text, err := writeConfig(config)
	if err != nil {
		return given
	}
	return text
}

// differences names the fields in which a request differs from the worker of its
// name.
func (f *Forge) differences(ctx context.Context, has worker.Worker, asked Request) (differ []string) {
	compare := func(field, has, asked string) {
		if has != asked {
			differ = append(differ, fmt.Sprintf("%s is %.200s, asked for %.200s", field, has, asked))
		}
	}
	compare("worker_type", has.Type, asked.Type)
	if asked.Version != "" {
		compare("type_version", has.TypeVersion, asked.Version)
	}
	compare("class_code", string(has.ClassCode), asked.ClassCode)
	compare("grants", grantWords(has.Grants), grantWords(asked.Grants))
	f.compareLimits(has, asked, compare)
	if has.Type == asked.Type {
		compare("config", string(has.Config), f.configLike(ctx, has, asked.Config))
	}
	return differ
}

// grantWords are grants as an error tells them.
func grantWords(grants []string) string {
	if len(grants) == 0 {
		return "none"
	}
	return strings.Join(grants, ", ")
}

// compareLimits compares what the worker may use with what it might as asked.
func (f *Forge) compareLimits(has worker.Worker, asked Request, compare func(field, has, asked string)) {
	other := has
	other.Limits = asked.Limits
	now, then := f.Spec(has).Limits, f.Spec(other).Limits
	compare("memory_bytes", strconv.FormatInt(now.MemoryBytes, 10), strconv.FormatInt(then.MemoryBytes, 10))
	compare("cpu_millis", strconv.FormatInt(now.CPUMillis, 10), strconv.FormatInt(then.CPUMillis, 10))
	compare("pids", strconv.FormatInt(now.PIDs, 10), strconv.FormatInt(then.PIDs, 10))
}

// configLike is what a config would be for a worker of that type and version; as
// it is given where it does not fit, or the version is gone.
func (f *Forge) configLike(ctx context.Context, w worker.Worker, given []byte) string {
	typ, err := f.Types.Lookup(ctx, w.Type, w.TypeVersion)
	if err != nil {
		return string(given)
	}
	config, err := configFor(typ, given)
	if err != nil {
		return string(given)
	}
	return string(config)
}
