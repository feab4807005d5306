package sdk

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/semver"

	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Type is a worker type: what a plugin binary provides. Give it to Serve.
type Type struct {
	// Name is the worker type, in every kind and in the binary's name
	// dals-worker-<name>: 1 to 32 lower-case letters, digits or '_', starting
	// with a letter.
	Name string
	// Version is a semantic version without a leading v or build metadata, as in
	// 1.0.0 or 1.1.0-rc.1. Change it with every change of the binary: a host
	// refuses other bytes under a version that it knows.
	Version string
	// Family is two capital letters, part of every serial.
	Family string
	// Summary is one line for people.
	Summary string
	// Config is a pointer to a struct that holds the defaults, or nil when there
	// is nothing to configure. In a worker its config.json is decoded over them
	// before Open. A field with a default that is not zero may be left out by
	// who forges; so may one marked omitempty or omitzero; all others must be given.
	Config any
	// Tasks are what workers of this type can do, 1 to 64.
	Tasks []Task
	// Resources are what one worker needs.
	Resources Resources
	// Capabilities are what a worker may need beyond its own folder, in the words
	// of package capability, as in egress:HOST:PORT or mount:/mnt/NAME
	// (Worker.DialContext, Worker.Mount). They are asked for here and
	// granted, or not, by who forges: Worker.Grants says which a worker has.
	Capabilities []string
	// Open, when not nil, runs in a worker once Config is read and before the
	// first task. ctx ends with the worker. An error ends the worker.
	Open func(ctx context.Context, w *Worker) error
	// Close, when not nil, runs after the last task when a worker ends in good
	// order; only a task that ignores its context may still run. A worker may also
	// be killed: never rely on it.
	Close func() error

	bounds bounds // the usual ones when zero; tests allow less
}

// Resources are what one worker needs; zero means the host's default. A host
// gives no more than it has to give, whatever is asked for, and refuses a type
// that asks for too little for a worker to come up.
type Resources struct {
	MemoryBytes int64 // from 16 MiB
	CPUMillis   int64 // thousandths of one core, from 10
	PIDs        int64 // processes and threads, from 16
}

var familyForm = regexp.MustCompile(`^[A-Z]{2}$`)

const (
	maxName = 32
	maxVerb = 64
)

// isWord says whether s is 1 to longest lower-case letters, digits or '_', starting
// with a letter. A regular expression with such a count takes long to compile.
func isWord(s string, longest int) bool {
	return s != "" && len(s) <= longest && 'a' <= s[0] && s[0] <= 'z' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// What a host lets a descriptor hold. Texts are in bytes.
const (
	maxSummary = 200
	maxSchema  = 64 << 10
	maxVersion = 64
	maxMajor   = 6 // digits
	maxTasks   = 64
)

// checkedType is a Type that is fit to be served.
type checkedType struct {
	Type
	kinds  map[string]Task
	config schema
}

// check says everything that is wrong with t at once: its author wants to mend
// it in one go.
func (t Type) check() (*checkedType, error) {
	return t.checkAll(func(task Task) error { return task.schemas().err })
}

// checkProbed is check of a t that a host's probe has found to be sound, which a
// worker's is: it goes without the schemas of tasks.
func (t Type) checkProbed() (*checkedType, error) {
	return t.checkAll(func(Task) error { return nil })
}

func (t Type) checkAll(checkSchemas func(Task) error) (*checkedType, error) {
	c := &checkedType{Type: t, kinds: make(map[string]Task, len(t.Tasks))}
	if c.bounds == (bounds{}) {
		c.bounds = usualBounds()
	}
	faults := []error{t.checkNames(), t.checkNeeds(), c.addTasks(checkSchemas)}
	var err error
	if c.config, err = configSchema(t.Config); err != nil {
		faults = append(faults, fmt.Errorf("config: %w", err))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return c, nil
}

func (t Type) checkNames() error {
	var faults []error
	if !isWord(t.Name, maxName) {
		faults = append(faults, fmt.Errorf("name %q: use 1 to 32 lower-case letters, digits or '_', starting with a letter", t.Name))
	}
	if v := "v" + t.Version; len(t.Version) > maxVersion || semver.Canonical(v) != v || len(semver.Major(v)) > len("v")+maxMajor {
		faults = append(faults, fmt.Errorf("version %q: use a semantic version without a leading v or build metadata, as in 1.0.0", t.Version))
	}
	if !familyForm.MatchString(t.Family) {
		faults = append(faults, fmt.Errorf("family %q: use two capital letters, as in TP", t.Family))
	}
	if err := checkLine(t.Summary, maxSummary); err != nil {
		faults = append(faults, fmt.Errorf("summary: %w", err))
	}
	return errors.Join(faults...)
}

func (t Type) checkNeeds() error {
	var faults []error
	for _, r := range []struct {
		asked, least, most int64
		unit               string
	}{
		{t.Resources.MemoryBytes, 16 << 20, 1 << 40, "bytes of memory"},
		{t.Resources.CPUMillis, 10, 1 << 20, "thousandths of a core"},
		{t.Resources.PIDs, 16, 1 << 22, "processes"},
	} {
		if r.asked != 0 && (r.asked < r.least || r.asked > r.most) {
			faults = append(faults, fmt.Errorf("resources: %d %s: from %d to %d, or 0 for the host's default", r.asked, r.unit, r.least, r.most))
		}
	}
	if n := len(t.Capabilities); n > capability.Max {
		return errors.Join(append(faults, fmt.Errorf("capabilities: %d, more than %d", n, capability.Max))...)
	}
	seen := make(map[string]bool, len(t.Capabilities))
	for _, name := range t.Capabilities {
		c, err := capability.ParseAsked(name)
		if err != nil {
			faults = append(faults, err)
		}
		if c.Kind == capability.Ingress && !t.hasTask(t.Name+wire.IngressVerb) {
			faults = append(faults, fmt.Errorf("capability %q: there is no task %q: make it with sdk.Ingress", name, t.Name+wire.IngressVerb))
		}
		if seen[name] {
			faults = append(faults, fmt.Errorf("capability %q: asked for twice", name))
		}
		seen[name] = true
	}
	return errors.Join(faults...)
}

func (t Type) hasTask(kind string) bool {
	return slices.ContainsFunc(t.Tasks, func(task Task) bool { return task.Kind == kind })
}

// addTasks checks the tasks and indexes them by kind.
func (c *checkedType) addTasks(checkSchemas func(Task) error) error {
	if len(c.Tasks) == 0 {
		return errors.New("tasks: there are none")
	}
	if n := len(c.Tasks); n > maxTasks {
		return fmt.Errorf("tasks: %d, more than %d", n, maxTasks)
	}
	var faults []error
	for _, task := range c.Tasks {
		verb, ok := strings.CutPrefix(task.Kind, c.Name+".")
		switch _, twice := c.kinds[task.Kind]; {
		case !ok || !isWord(verb, maxVerb):
			faults = append(faults, fmt.Errorf("task %q: a kind is %q and a verb of lower-case letters, digits or '_'", task.Kind, c.Name+"."))
		case twice:
			faults = append(faults, fmt.Errorf("task %q: given twice", task.Kind))
		}
		if err := checkLine(task.Summary, maxSummary); err != nil {
			faults = append(faults, fmt.Errorf("task %q: summary: %w", task.Kind, err))
		}
		if task.prepare == nil {
			faults = append(faults, fmt.Errorf("task %q: make tasks with sdk.Func or sdk.Process", task.Kind))
		} else if err := checkSchemas(task); err != nil {
			faults = append(faults, fmt.Errorf("task %q: %w", task.Kind, err))
		}
		c.kinds[task.Kind] = task
	}
	return errors.Join(faults...)
}

// checkLine says whether s is one line of text that may be shown to people.
func checkLine(s string, limit int) error {
	switch {
	case strings.TrimSpace(s) == "":
		return errors.New("it is empty")
	case len(s) > limit:
		return fmt.Errorf("it has %d bytes, more than %d", len(s), limit)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("it is not one line of text")
	}
	return nil
}

// configStruct is the struct that config points to.
func configStruct(config any) (reflect.Type, error) {
	if config == nil {
		return reflect.TypeFor[struct{}](), nil
	}
	v := reflect.ValueOf(config)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("it is a %T, not a pointer to a struct that holds the defaults", config)
	}
	return v.Elem().Type(), nil
}
