package catalog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// State is where a plugin stands in its life.
type State string

// The states of a plugin.
const (
	Discovered  State = "discovered"  // seen; waiting until it is complete, or being verified
	Verified    State = "verified"    // in the store; waiting for its probe
	Probed      State = "probed"      // described itself; not yet on record
	Registered  State = "registered"  // its type can be forged
	Draining    State = "draining"    // its file is gone, workers still use it
	Gone        State = "gone"        // its file is gone and nobody uses it
	Quarantined State = "quarantined" // not a good plugin: Reason and Fix say why
)

// Plugin is one binary that the catalog has seen.
type Plugin struct {
	Path    string
	Digest  string // hex SHA-256; empty until verified
	State   State
	Type    string // empty until probed
	Version string
	Reason  string // why it is quarantined, or what keeps it waiting
	Fix     string // what to do about it
}

// Event is one change of a plugin's state.
type Event struct {
	At     time.Time
	Plugin Plugin
}

// Entry is one version of a worker type. Entries share their Descriptor with
// the catalog: nobody may change it.
type Entry struct {
	Type       string
	Version    string
	Digest     string // hex SHA-256 of the binary
	Family     string
	Summary    string
	Descriptor *workerv1.TypeDescriptor
	Path       string // the store's copy of the binary: the only one to execute
	Default    bool   // the version that is forged when none is named
	Draining   bool   // the file is gone: no new workers
}

// view is a snapshot of the catalog; it never changes.
type view struct {
	dirs    []string
	entries []Entry // by type, then version
	plugins []Plugin
}

// Types lists the registered and the draining versions, by type, then by
// semantic version.
func (c *Catalog) Types() []Entry { return slices.Clone(c.view.Load().entries) }

// Plugins lists every binary seen, by path; those that were registered stay in
// the list when they are gone.
func (c *Catalog) Plugins() []Plugin { return slices.Clone(c.view.Load().plugins) }

// Lookup finds what to forge a worker from: the version of a type, or with an
// empty version its default. A type or version that is not registered is
// worker.ErrNotFound, a draining one worker.ErrUnavailable; the hint lists what
// there is.
func (c *Catalog) Lookup(typeName, version string) (Entry, error) {
	v := c.view.Load()
	var last Entry
	var versions, live []string
	for _, e := range v.entries {
		if e.Type != typeName {
			continue
		}
		if e.Version == version || version == "" && e.Default {
			if e.Draining {
				return Entry{}, draining(e)
			}
			return e, nil
		}
		last, versions = e, append(versions, e.Version)
		if !e.Draining {
			live = append(live, e.Version)
		}
	}
	switch {
	case len(versions) == 0:
		return Entry{}, v.unknownType(typeName)
	case version != "":
		return Entry{}, refuse(worker.ErrNotFound, "registered versions: "+strings.Join(versions, ", "),
			"worker type '%s' has no version %s", typeName, inline(version))
	case len(live) == 0:
		return Entry{}, draining(last)
	}
	return Entry{}, refuse(worker.ErrUnavailable, "name one of its versions: "+strings.Join(live, ", "),
		"worker type '%s' has no default version: its files have another owner than its first", typeName)
}

func (v *view) unknownType(typeName string) error {
	var names []string
	for _, e := range v.entries {
		if !e.Draining {
			names = append(names, e.Type)
		}
	}
	hint := "registered types: " + strings.Join(slices.Compact(names), ", ")
	if len(names) == 0 {
		hint = "no worker type is registered: drop a dals-worker-<type> binary into " + strings.Join(v.dirs, " or ")
	}
	return refuse(worker.ErrNotFound, hint, "worker type '%s' is not registered", inline(typeName))
}

func draining(e Entry) error {
	return refuse(worker.ErrUnavailable, "put the file back into the plugins folder to forge new workers; living workers go on",
		"worker type '%s' %s is draining: its plugin file is gone", e.Type, e.Version)
}

// refuse makes an error that says its text and no more, belongs to a family and
// carries a hint.
func refuse(family error, hint, format string, args ...any) error {
	return worker.Hint(&lookupError{fmt.Sprintf(format, args...), family}, hint)
}

type lookupError struct {
	text   string
	family error
}

func (e *lookupError) Error() string { return e.text }
func (e *lookupError) Unwrap() error { return e.family }

// inline shows somebody's text inside a line of our own.
func inline(s string) string {
	const limit = 64
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit]) + "…"
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// byVersion orders entries by type, then by semantic version.
func byVersion(a, b Entry) int {
	if c := strings.Compare(a.Type, b.Type); c != 0 {
		return c
	}
	return semver.Compare("v"+a.Version, "v"+b.Version)
}
