package catalog

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// keeper is what Run knows. It belongs to Run's goroutine alone: jobs run beside
// it and send back what is to be done with their outcome.
type keeper struct {
	cfg       Config
	store     *store
	catalog   *Catalog
	log       hclog.Logger
	watch     *watch
	sightings *sightings
	book      *book
	verdicts  map[string]*verdict    // by digest
	files     map[string]*file       // by path
	leaving   map[typeVersion]Plugin // lost their file
	gone      []Plugin               // the latest only

	jobs     sync.WaitGroup
	finished chan func()
	working  int             // jobs not finished
	probing  map[string]bool // digests

	collecting []collection // calls that wait until no job is under way

	seen       int // files ever seen, to take turns
	lastLook   time.Time
	hurried    bool            // something has happened
	unreadable map[string]bool // folders
}

// verdict is a Verdict and whether it is on record.
type verdict struct {
	Verdict
	saved bool
}

// file is a plugin file that is in a folder.
type file struct {
	Plugin
	turn    int
	look    look      // the latest
	since   time.Time // the first look that was so
	checked look      // the look that was verified; Digest and the rest are of it
	claim   *Claim    // that it stands for; nil unless registered
	busy    bool      // its verification is under way
	again   bool      // touched while quarantined: what was remembered is not enough
	tries   int       // since the host's trouble began
	retryAt time.Time
}

func newKeeper(ctx context.Context, c *Catalog) (*keeper, error) {
	claims, err := c.cfg.Registry.Claims(ctx)
	if err != nil {
		return nil, err
	}
	verdicts, err := c.cfg.Registry.Verdicts(ctx)
	if err != nil {
		return nil, err
	}
	k := &keeper{
		cfg: c.cfg, store: c.store, catalog: c, log: c.cfg.Logger,
		watch:     newWatch(c.cfg.Logger),
		sightings: openSightings(filepath.Join(c.cfg.StoreDir, "sightings.json")),
		book:      newBook(claims),
		verdicts:  map[string]*verdict{},
		files:     map[string]*file{},
		leaving:   map[typeVersion]Plugin{},
		finished:  make(chan func(), maxJobs), // so that no job waits for a Run that has ended
		probing:   map[string]bool{},

		unreadable: map[string]bool{},
	}
	for _, v := range verdicts {
		k.verdicts[v.Digest] = &verdict{Verdict: v, saved: true}
	}
	return k, nil
}

// lookAround compares all folders with what is known. It stats and opens
// nothing but folders.
func (k *keeper) lookAround() {
	k.lastLook, k.hurried = time.Now(), false
	present := map[string]bool{}
	for _, dir := range k.cfg.Dirs {
		k.watch.follow(dir)
		looks, err := lookInto(dir)
		trouble := err != nil && !errors.Is(err, fs.ErrNotExist)
		if trouble {
			for path := range k.files { // not known to be gone
				present[path] = present[path] || filepath.Dir(path) == dir
			}
			if !k.unreadable[dir] {
				k.log.Warn("folder cannot be read", "folder", dir, "error", err)
			}
		}
		k.unreadable[dir] = trouble
		for path, l := range looks {
			present[path] = true
			k.notice(path, l)
		}
	}
	for path, f := range k.files {
		if !present[path] {
			k.vanish(f)
		}
	}
}

func (k *keeper) notice(path string, l look) {
	f, ok := k.files[path]
	switch {
	case !ok:
		k.seen++
		f = &file{Plugin: Plugin{Path: path}, turn: k.seen}
		k.files[path] = f
	case f.look == l:
		return
	}
	f.look, f.since, f.tries, f.retryAt = l, k.lastLook, 0, time.Time{}
	if f.State == Quarantined {
		f.again = true
	}
	if f.claim == nil { // what is registered stays so until its bytes are known to differ
		k.move(f, Discovered, "", "")
	}
}

func (k *keeper) vanish(f *file) {
	delete(k.files, f.Path)
	k.sightings.forget(f.Path)
	if f.claim != nil {
		k.release(f)
		return
	}
	f.State = Gone
	k.tell(f.Plugin)
}

// release takes its file away from a registered type.
func (k *keeper) release(f *file) {
	if f.claim == nil {
		return
	}
	k.leaving[typeVersion{f.claim.Type, f.claim.Version}] = f.Plugin
	f.claim = nil
}

// adoptWorkers finds types of an earlier host that have workers but no file.
func (k *keeper) adoptWorkers() {
	standing := k.standing()
	for r, c := range k.book.versions {
		if standing[r] == nil && k.cfg.InUse(r.typeName, r.version) {
			k.leaving[r] = Plugin{Digest: c.Digest, Type: c.Type, Version: c.Version}
		}
	}
	k.retire()
}

// retire moves on the types that have no file any more.
func (k *keeper) retire() {
	if len(k.leaving) == 0 {
		return
	}
	standing := k.standing()
	for r, p := range k.leaving {
		switch {
		case standing[r] != nil:
			delete(k.leaving, r)
		case !k.cfg.InUse(r.typeName, r.version):
			delete(k.leaving, r)
			p.State = Gone
			k.gone = append(k.gone, p)
			k.gone = k.gone[max(0, len(k.gone)-maxGone):]
			k.tell(p)
		case p.State != Draining:
			p.State = Draining
			k.leaving[r] = p
			k.tell(p)
		}
	}
}

// standing is which file stands for each registered version; of several the one
// that came first.
func (k *keeper) standing() map[typeVersion]*file {
	standing := map[typeVersion]*file{}
	for _, f := range k.inTurn() {
		if f.claim != nil && standing[typeVersion{f.Type, f.Version}] == nil {
			standing[typeVersion{f.Type, f.Version}] = f
		}
	}
	return standing
}

func (k *keeper) inTurn() []*file {
	return slices.SortedFunc(maps.Values(k.files), func(a, b *file) int { return cmp.Compare(a.turn, b.turn) })
}

// nextLook is when to look around again.
func (k *keeper) nextLook() time.Time {
	wait, now := rescan, time.Now()
	for _, f := range k.files {
		if f.look != f.checked && !f.busy && now.After(f.retryAt) {
			wait = settle
		}
	}
	if k.hurried {
		wait = breath
	}
	return k.lastLook.Add(wait)
}

// move changes a file's state and tells of it.
func (k *keeper) move(f *file, s State, reason, fix string) {
	if f.State == s && f.Reason == reason {
		return
	}
	f.State, f.Reason, f.Fix = s, reason, fix
	k.tell(f.Plugin)
}

func (k *keeper) tell(p Plugin) {
	level := hclog.Debug
	switch p.State {
	case Registered, Draining, Gone:
		level = hclog.Info
	case Quarantined:
		level = hclog.Warn
	}
	k.log.Log(level, "plugin changed state", "state", string(p.State), "path", p.Path, "digest", p.Digest, "type", p.Type, "version", p.Version, "reason", p.Reason)
	if k.cfg.OnEvent != nil {
		k.cfg.OnEvent(Event{At: time.Now(), Plugin: p})
	}
}
