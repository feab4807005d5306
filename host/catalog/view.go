package catalog

import (
	"cmp"
	"slices"
	"strings"
)

// maxGone is how many types that are gone stay in the list of plugins.
const maxGone = 64

// publish makes what the keeper knows visible, and saves what spares work after
// a restart.
func (k *keeper) publish() {
	v := &view{dirs: k.cfg.Dirs, plugins: k.plugins()}
	for r, f := range k.standing() {
		v.entries = append(v.entries, k.entry(r, f.Digest, false))
	}
	for r, p := range k.leaving {
		if k.verdicts[p.Digest] != nil {
			v.entries = append(v.entries, k.entry(r, p.Digest, true))
		}
	}
	slices.SortFunc(v.entries, byVersion)
	k.book.markDefaults(v.entries)
	k.catalog.view.Store(v)
	if err := k.sightings.save(); err != nil {
		k.log.Debug("a restart will read every plugin again", "error", err)
	}
}

func (k *keeper) entry(r typeVersion, digest string, draining bool) Entry {
	d := k.verdicts[digest].Descriptor
	return Entry{
		Type: r.typeName, Version: r.version, Digest: digest,
		Family: d.Family, Summary: d.Summary, Descriptor: d,
		Path: k.store.path(digest), Draining: draining,
	}
}

func (k *keeper) plugins() []Plugin {
	var list []Plugin
	for _, f := range k.files {
		list = append(list, f.Plugin)
	}
	for _, p := range k.leaving {
		list = append(list, p)
	}
	for _, p := range slices.Backward(k.gone) {
		if k.files[p.Path] == nil && !slices.ContainsFunc(list, func(q Plugin) bool { return q.Path == p.Path }) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b Plugin) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Digest, b.Digest))
	})
	return list
}
