package catalog

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/mod/semver"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// typeVersion names one version of a type.
type typeVersion struct{ typeName, version string }

// book is who came first: trust on first use.
type book struct {
	versions map[typeVersion]Claim
	first    map[string]Claim // by type
	families map[string]string
}

func newBook(claims []Claim) *book {
	b := &book{versions: map[typeVersion]Claim{}, first: map[string]Claim{}, families: map[string]string{}}
	for _, c := range slices.SortedStableFunc(slices.Values(claims), func(a, b Claim) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) }) {
		b.add(c)
	}
	return b
}

func (b *book) add(c Claim) {
	b.versions[typeVersion{c.Type, c.Version}] = c
	if _, ok := b.first[c.Type]; !ok {
		b.first[c.Type] = c
		b.families[c.Family] = c.Type
	}
}

// check says whether a binary may stand for what its descriptor says. known is
// the claim that it stands on; with neither a claim nor an error it may make one.
func (b *book) check(digest string, d *workerv1.TypeDescriptor) (known *Claim, err error) {
	if c, ok := b.versions[typeVersion{d.Name, d.Version}]; ok {
		if c.Digest != digest {
			return nil, &Fault{
				Reason: fmt.Sprintf("says it is %s %s, but other bytes were that version before (sha256 %.12s…)", d.Name, d.Version, c.Digest),
				Fix:    "give every build that differs a version of its own, or put the first file back",
			}
		}
		return &c, nil
	}
	if owner, ok := b.families[d.Family]; ok && owner != d.Name {
		return nil, &Fault{
			Reason: fmt.Sprintf("claims the family %s, which belongs to the worker type %s", d.Family, owner),
			Fix:    "choose two other capital letters in the type's descriptor",
		}
	}
	if c, ok := b.first[d.Name]; ok && c.Family != d.Family {
		return nil, &Fault{
			Reason: fmt.Sprintf("claims the family %s, but the worker type %s is of the family %s", d.Family, d.Name, c.Family),
			Fix:    "keep the family of the type's earlier versions: it is part of its workers' serials",
		}
	}
	return nil, nil
}

// markDefaults marks, for each type, the highest version whose file has the
// owner of the type's first.
func (b *book) markDefaults(entries []Entry) {
	best := map[string]int{}
	for i, e := range entries {
		if e.Draining || b.versions[typeVersion{e.Type, e.Version}].OwnerUID != b.first[e.Type].OwnerUID {
			continue
		}
		if j, ok := best[e.Type]; !ok || semver.Compare("v"+entries[j].Version, "v"+e.Version) < 0 {
			best[e.Type] = i
		}
	}
	for _, i := range best {
		entries[i].Default = true
	}
}
