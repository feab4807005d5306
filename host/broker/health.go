package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// Health is what the host has heard of a worker.
type Health struct {
	Connected      bool
	Last           time.Time // of the last sign of life; zero before the first
	Interval       time.Duration
	Missed         int // whole intervals since Last
	VaultIntegrity bool
	VaultFault     string
	StartedAt      time.Time // of the worker's process
	InFlight       uint32
	Done, Failed   uint64 // tasks of this process
	RSSBytes       uint64
}

// health is what was heard so far.
func (p *pulse) health() Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := Health{Last: p.last, Interval: p.interval}
	if !p.last.IsZero() {
		h.Missed = int(time.Since(p.last) / p.interval)
	}
	if b := p.beat; b != nil {
		h.VaultIntegrity, h.VaultFault = p.fault == "", p.fault
		h.StartedAt = time.UnixMilli(b.GetStartedAtUnixMs()).UTC()
		h.InFlight, h.Done, h.Failed, h.RSSBytes = b.GetTasksInFlight(), b.GetTasksDone(), b.GetTasksFailed(), b.GetRssBytes()
	}
	return h
}

// Health tells what was heard of a worker; the zero Health if it is not
// attached.
func (b *Broker) Health(serial worker.Serial) Health {
	s := b.session(serial)
	if s == nil {
		return Health{}
	}
	h := s.pulse.health()
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Connected = s.link != nil
	return h
}

// AwaitHeartbeat waits until the worker, over its authenticated connection and
// later than since, says that its manifest and vault are whole. A worker that
// says they are not is an error at once.
func (b *Broker) AwaitHeartbeat(ctx context.Context, serial worker.Serial, since time.Time) error {
	s := b.session(serial)
	if s == nil {
		return fmt.Errorf("await heartbeat: worker %s: %w", serial, errDetached)
	}
	var fault string
	err := s.pulse.until(ctx, func() bool {
		fault = s.pulse.fault
		return s.pulse.beatAt.After(since)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		if why := s.whyAway(); why != "" {
			return fmt.Errorf("no heartbeat came in time: %s: %w", why, worker.ErrDeadline)
		}
		return fmt.Errorf("no heartbeat came in time: %w", worker.ErrDeadline)
	}
	if err == nil && fault != "" {
		return fmt.Errorf("vault_integrity=false: %s: %w", fault, worker.ErrCorrupt)
	}
	return err
}

// Ping asks for a sign of life and waits for it.
func (b *Broker) Ping(ctx context.Context, serial worker.Serial) error {
	s := b.session(serial)
	if s == nil {
		return fmt.Errorf("ping worker %s: %w", serial, errDetached)
	}
	asked := make(chan uint64, 1)
	var n uint64
	select {
	case s.pulse.ask <- asked:
		n = <-asked
	case <-ctx.Done():
		return fmt.Errorf("ping worker %s: %w", serial, ctx.Err())
	}
	return s.pulse.until(ctx, func() bool { return s.pulse.pong >= n })
}

// Missed is the number of whole heartbeat intervals without a sign of life,
// counted from since if there was none after it.
func (b *Broker) Missed(serial worker.Serial, since time.Time) int {
	if last := b.Health(serial).Last; last.After(since) {
		since = last
	}
	return int(time.Since(since) / b.Interval)
}
