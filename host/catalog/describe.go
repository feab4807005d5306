package catalog

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// What a descriptor may hold.
const (
	maxTasks   = 64
	maxSummary = 200
	maxVersion = 64
	maxMajor   = 6 // digits: it is the generation in serials
)

var verbForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// checkDescriptor judges what a plugin says of itself, as hostile data, and
// returns a copy of what is good in it: known fields only, texts cleaned. The
// error is a *Fault.
func checkDescriptor(said *workerv1.TypeDescriptor) (d *workerv1.TypeDescriptor, err error) {
	// The schema library asserts by panic, and here it reads a stranger's text.
	defer func() {
		if p := recover(); p != nil {
			d, err = nil, bad("use plainer JSON Schemas", "its descriptor breaks the schema library: %v", p)
		}
	}()
	if said == nil {
		return nil, bad("build it with the SDK", "describes nothing")
	}
	d = &workerv1.TypeDescriptor{
		Name: said.Name, Version: said.Version, Family: said.Family,
		Summary: oneLine(said.Summary, maxSummary), ConfigSchema: orAnything(said.ConfigSchema),
	}
	if err := checkNames(d); err != nil {
		return nil, err
	}
	if err := checkSchema("its config", d.ConfigSchema); err != nil {
		return nil, err
	}
	if d.Tasks, err = checkTasks(d.Name, said.Tasks); err != nil {
		return nil, err
	}
	if d.Resources, err = checkResources(said.Resources); err != nil {
		return nil, err
	}
	if d.Capabilities, err = checkCapabilities(said.Capabilities); err != nil {
		return nil, err
	}
	return d, checkIngress(d)
}

// checkIngress: what lets requests in has a task that answers them.
func checkIngress(d *workerv1.TypeDescriptor) error {
	for _, text := range d.Capabilities {
		c, err := capability.Parse(text)
		if err != nil || c.Kind != capability.Ingress {
			continue
		}
		if !slices.ContainsFunc(d.Tasks, func(t *workerv1.TaskKind) bool { return t.Kind == d.Name+wire.IngressVerb }) {
			return bad("make it with sdk.Ingress", "asks for %s and has no task %s", text, d.Name+wire.IngressVerb)
		}
	}
	return nil
}

func checkNames(d *workerv1.TypeDescriptor) error {
	for _, err := range []error{worker.CheckTypeName(d.Name), worker.CheckFamily(d.Family)} {
		if err != nil {
			return bad(worker.HintOf(err), "describes itself badly: %v", err)
		}
	}
	canonical := len(d.Version) <= maxVersion && semver.Canonical("v"+d.Version) == "v"+d.Version
	if !canonical || len(semver.Major("v"+d.Version)) > 1+maxMajor {
		return bad("use MAJOR.MINOR.PATCH, with -PRERELEASE if need be and without a leading v",
			"has the version %q, which is no semantic version", oneLine(d.Version, maxVersion))
	}
	return nil
}

func checkTasks(typeName string, said []*workerv1.TaskKind) ([]*workerv1.TaskKind, error) {
	if len(said) > maxTasks {
		return nil, bad("split the type", "has %d kinds of task, more than %d", len(said), maxTasks)
	}
	seen := map[string]bool{}
	var tasks []*workerv1.TaskKind
	for _, t := range said {
		verb, ok := strings.CutPrefix(t.GetKind(), typeName+".")
		if !ok || !verbForm.MatchString(verb) {
			return nil, bad("name tasks "+typeName+".<verb>, the verb of lower-case letters, digits and _",
				"has a task of the kind %q", oneLine(t.GetKind(), 80))
		}
		if seen[verb] {
			return nil, bad("name each kind once", "has the task %s twice", t.Kind)
		}
		seen[verb] = true
		if err := checkSchema("the input of "+t.Kind, t.InputSchema); err != nil {
			return nil, err
		}
		if err := checkSchema("the output of "+t.Kind, t.OutputSchema); err != nil {
			return nil, err
		}
		tasks = append(tasks, &workerv1.TaskKind{
			Kind: t.Kind, Summary: oneLine(t.Summary, maxSummary), InputSchema: orAnything(t.InputSchema), OutputSchema: orAnything(t.OutputSchema),
		})
	}
	return tasks, nil
}

// checkResources has the bounds of who forges a worker: no forge of a type that
// asks for less would come to an end.
func checkResources(said *workerv1.Resources) (*workerv1.Resources, error) {
	for _, r := range []struct {
		name             string
		asked, low, high int64
	}{
		{"memory_bytes", said.GetMemoryBytes(), worker.MinMemoryBytes, worker.MaxMemoryBytes},
		{"cpu_millis", said.GetCpuMillis(), worker.MinCPUMillis, worker.MaxCPUMillis},
		{"pids", said.GetPids(), worker.MinPIDs, worker.MaxPIDs},
	} {
		if r.asked != 0 && (r.asked < r.low || r.asked > r.high) {
			return nil, bad(fmt.Sprintf("ask for %d to %d, or 0 for the host's default", r.low, r.high), "asks for %s = %d", r.name, r.asked)
		}
	}
	return &workerv1.Resources{MemoryBytes: said.GetMemoryBytes(), CpuMillis: said.GetCpuMillis(), Pids: said.GetPids()}, nil
}

func checkCapabilities(said []string) ([]string, error) {
	if len(said) > capability.Max {
		return nil, bad("ask for fewer", "asks for %d capabilities, more than %d", len(said), capability.Max)
	}
	for _, c := range said {
		if _, err := capability.ParseAsked(c); err != nil {
			return nil, bad("ask for what this host knows, as it writes it: see docs/capabilities.md", "asks for what there is not: %v", err)
		}
	}
	return said, nil
}

// bad makes a fault, its reason and fix cleaned.
func bad(fix, format string, args ...any) *Fault {
	return &Fault{Reason: oneLine(fmt.Sprintf(format, args...), maxReason), Fix: oneLine(fix, maxReason)}
}
