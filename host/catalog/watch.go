package catalog

import (
	"os"
	"syscall"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// watch says when a folder may have changed. It only makes the catalog quicker:
// whatever it misses, the next rescan finds. Folders are watched, not files: a
// file that takes another's place is an event of its folder.
type watch struct {
	fs        *fsnotify.Watcher // nil where the machine has no more to give
	following map[string]folderID
	logger    hclog.Logger
}

type folderID struct{ dev, ino uint64 }

func newWatch(logger hclog.Logger) *watch {
	w := &watch{following: map[string]folderID{}, logger: logger}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		logger.Warn("folders are not watched, only rescanned", "error", err)
		return w
	}
	w.fs = fs
	return w
}

// follow watches the folder that is at dir now, which may be another one than
// the last time.
func (w *watch) follow(dir string) {
	if w.fs == nil {
		return
	}
	info, err := os.Stat(dir)
	if err != nil {
		delete(w.following, dir)
		return
	}
	stat := info.Sys().(*syscall.Stat_t)
	id := folderID{stat.Dev, stat.Ino}
	if w.following[dir] == id {
		return
	}
	_ = w.fs.Remove(dir) // of the folder that was there before, if any
	if err := w.fs.Add(dir); err != nil {
		w.logger.Warn("folder is not watched, only rescanned", "folder", dir, "error", err)
	}
	w.following[dir] = id
}

func (w *watch) events() <-chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

// overflows tells of errors of the watch, which are lost events most of all.
func (w *watch) overflows() <-chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

func (w *watch) close() {
	if w.fs != nil {
		_ = w.fs.Close()
	}
}
