package broker

import (
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// arrivals tells who waits when something appears in a folder. It only makes waiting
// cheaper, and shorter: whatever it misses, the next look finds. It is safe for
// concurrent use.
type arrivals struct {
	fs    *fsnotify.Watcher // nil where the machine has no more to give
	ended chan struct{}

	mu      sync.Mutex
	waiting map[string]chan struct{} // by folder
}

func newArrivals(logger hclog.Logger) *arrivals {
	a := &arrivals{ended: make(chan struct{}), waiting: map[string]chan struct{}{}}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		logger.Warn("folders of workers are not watched, only looked at", "error", err)
		close(a.ended)
		return a
	}
	a.fs = fs
	go a.run()
	return a
}

func (a *arrivals) run() {
	defer close(a.ended)
	for {
		select {
		case event, ok := <-a.fs.Events:
			if !ok {
				return
			}
			if event.Has(fsnotify.Create) {
				a.tell(filepath.Dir(event.Name))
			}
		case _, ok := <-a.fs.Errors: // what was missed is found without
			if !ok {
				return
			}
		}
	}
}

func (a *arrivals) tell(folder string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if there := a.waiting[folder]; there != nil {
		close(there)
		delete(a.waiting, folder)
	}
}

// await begins to watch a folder, which nobody else does, until leave is called. The
// channel is closed when something appears in it; it is nil where nobody would tell.
func (a *arrivals) await(folder string) (there <-chan struct{}, leave func()) {
	if a.fs == nil {
		return nil, func() {}
	}
	told := make(chan struct{})
	a.mu.Lock()
	a.waiting[folder] = told
	a.mu.Unlock()
	leave = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.waiting, folder)
		_ = a.fs.Remove(folder) // it may have gone
	}
	if err := a.fs.Add(folder); err != nil {
		leave()
		return nil, func() {}
	}
	return told, leave
}

// close ends the watch of all folders.
func (a *arrivals) close() {
	if a.fs != nil {
		_ = a.fs.Close()
	}
	<-a.ended
}
