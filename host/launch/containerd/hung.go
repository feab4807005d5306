package containerd

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// A containerd that hangs does not end, so it is asked whether it is there.

// pulse is how often containerd is asked, and for how long.
type pulse struct {
	every    time.Duration
	answer   time.Duration // for one answer, on a busy machine
	patience time.Duration // without any answer
	start    time.Duration // for the first answer to a launcher that opens
}

func usualPulse() pulse {
	return pulse{every: 10 * time.Second, answer: 10 * time.Second, patience: time.Minute, start: 30 * time.Second}
}

// watchDaemon ends a containerd that has not answered for as long as patience says,
// until the launcher is closed.
func (l *Launcher) watchDaemon() {
	ticker := time.NewTicker(l.pulse.every)
	defer ticker.Stop()
	for answered := time.Now(); ; {
		select {
		case <-ticker.C:
		case <-l.life.Done():
			return
		}
		if l.answers(l.pulse.answer) {
			answered = time.Now()
			continue
		}
		if silent := time.Since(answered); silent >= l.pulse.patience {
			l.daemon.hung(silent)
			answered = time.Now()
		}
	}
}

func (l *Launcher) answers(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(l.life, within)
	defer cancel()
	_, err := l.client.Version(ctx)
	return err == nil || l.life.Err() != nil
}

// hung ends containerd, which is started again then; workers run on. One that has
// ended is being started already.
func (p *private) hung(silent time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process.Ended() {
		return
	}
	p.log.Error("containerd does not answer, and is killed", "pid", p.process.Identity().PID, "silent", silent)
	if err := p.process.Signal(unix.SIGKILL); err != nil {
		p.log.Error("containerd not killed", "error", err)
	}
}

// blame is an error of a call that containerd did not answer in time.
func (p *private) blame(cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pid := p.process.Identity().PID
	return fmt.Errorf("containerd, process %d, does not answer: kill -KILL %d ends it, and it is started again: %w: %w", pid, pid, cause, worker.ErrUnavailable)
}

// hung leaves it to who runs it.
func (s *shared) hung(silent time.Duration) {
	s.log.Error("containerd does not answer", "address", s.address, "silent", silent)
}

func (s *shared) blame(cause error) error {
	return fmt.Errorf("the containerd at %s does not answer: restart it: %w: %w", s.address, cause, worker.ErrUnavailable)
}
