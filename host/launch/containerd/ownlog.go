package containerd

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ownLogBytes is how long the log of the private containerd may become. Shims of
	// its own write more than 1 KiB into it for each worker that they start, whatever
	// level containerd is told to log at.
	ownLogBytes = 4 << 20
	// ownLogEvery is how often that is looked at.
	ownLogEvery = time.Minute
)

// boundLogs keeps containerd's log within bounds while somebody looks after
// containerd. Without a host no worker is started, and next to nothing logged.
func (p *private) boundLogs() {
	ticker := time.NewTicker(ownLogEvery)
	defer ticker.Stop()
	for {
		select {
		case <-p.life.Done():
			return
		case <-ticker.C:
		}
		if err := p.boundLog(); err != nil {
			p.log.Warn("containerd's log is not cut", "error", err)
		}
	}
}

// boundLog takes the beginning of a log away that has become too long or, where
// the file system cannot do that, all of it: containerd appends to it, and goes on.
func (p *private) boundLog() error {
	file, err := os.OpenFile(p.logFile(), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() <= ownLogBytes {
		return err
	}
	const block = 64 << 10 // file systems take no parts of their blocks away
	end := (info.Size() - ownLogBytes/2) / block * block
	if unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, end) == nil {
		return nil
	}
	return file.Truncate(0)
}
