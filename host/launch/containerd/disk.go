package containerd

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// diskLimits bound what a worker keeps in state/ and run/ together.
type diskLimits struct {
	bytes int64 // as the disk counts them
	files int   // folders and all else that has a name
}

const (
	// diskTick is how often the free space is asked for, which costs nothing.
	diskTick = 500 * time.Millisecond
	// By so much space or so many files less there must be free to look who took
	// them.
	diskDropBytes = 64 << 20
	diskDropFiles = 10_000
	// diskPatience is the longest time between two looks, for what does not show
	// in the free space.
	diskPatience = 30 * time.Second
	// diskShare keeps looking from taking more than this part of a core, as long as
	// nobody has to wait for a look longer than diskBlind: who makes looks long, with
	// many files, would not be looked at.
	diskShare = 20
	diskBlind = 2 * time.Second
)

// watchDisk ends workers that take more disk than they may, until the launcher
// is closed. See docs/adr/0018-a-watch-over-disks.md for why it is no quota.
func (l *Launcher) watchDisk() {
	defer close(l.watched)
	ticker := time.NewTicker(diskTick)
	defer ticker.Stop()
	var free space
	var next, latest time.Time
	for {
		select {
		case <-l.life.Done():
			return
		case <-ticker.C:
		}
		now := freeSpace(l.cfg.DataDir)
		free = space{bytes: max(free.bytes, now.bytes), files: max(free.files, now.files)}
		shrunk := now.bytes < free.bytes-diskDropBytes || now.files < free.files-diskDropFiles
		if began := time.Now(); began.After(latest) || shrunk && began.After(next) {
			l.boundDisks(l.life)
			free = now
			next, latest = time.Now().Add(min(diskShare*time.Since(began), diskBlind)), time.Now().Add(diskPatience)
		}
	}
}

// space is what a file system has left.
type space struct{ bytes, files int64 }

// freeSpace is what is left on path's file system; where that cannot be known,
// nothing.
func freeSpace(path string) space {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return space{}
	}
	return space{bytes: int64(fs.Bavail) * fs.Bsize, files: int64(fs.Ffree)}
}

// boundDisks looks at every worker once.
func (l *Launcher) boundDisks(ctx context.Context) {
	for serial, dir := range l.folders.Range {
		if ctx.Err() != nil {
			return
		}
		l.boundDisk(ctx, serial.(worker.Serial), dir.(string))
	}
}

// boundDisk ends a worker that runs and has taken too much.
func (l *Launcher) boundDisk(ctx context.Context, serial worker.Serial, dir string) {
	pids := l.cgroups.members(serial)
	if len(pids) == 0 {
		return
	}
	use := usage{limits: l.disk}
	for _, name := range []string{launch.StateDir, launch.RunDir} {
		if err := use.addTree(dir, name); err != nil {
			l.log.Warn("disk use of worker not known", "serial", serial, "folder", name, "error", err)
		}
	}
	use.addHidden(pids)
	if !use.over() {
		return
	}
	l.log.Warn("worker is ended: it takes more disk than it may", "serial", serial, "bytes", use.bytes, "files", use.files,
		"most bytes", l.disk.bytes, "most files", l.disk.files)
	l.overDisk.Store(serial, true)
	if err := l.kill(ctx, serial); err != nil {
		l.log.Error("worker that takes too much disk not ended", "serial", serial, "error", err)
	}
}

// findFolders notes where the workers of earlier hosts have their folders.
func (l *Launcher) findFolders(ctx context.Context) error {
	containers, err := l.ownContainers(ctx)
	for _, c := range containers {
		l.folders.Store(worker.Serial(c.ID), folderOf(c))
	}
	return err
}
