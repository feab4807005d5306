package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
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

// pulse hears one worker's heartbeats, over all its connections.
type pulse struct {
	interval time.Duration
	pings    atomic.Uint64

	ask chan uint64

	mu      sync.Mutex
	last    time.Time                   // of the last sign of life
	beat    *workerv1.HeartbeatResponse // the latest
	beatAt  time.Time
	pong    uint64        // the highest heard
	changed chan struct{} // closed and replaced at every heartbeat
}

func newPulse(interval time.Duration) *pulse {
	return &pulse{interval: interval, changed: make(chan struct{}), ask: make(chan uint64)}
}

// run reads one heartbeat stream until it ends.
func (p *pulse) run(ctx context.Context, serial worker.Serial, beats workerv1.WorkerService_HeartbeatClient) error {
	if err := beats.Send(&workerv1.HeartbeatRequest{IntervalMs: uint32(p.interval.Milliseconds()), Ping: p.pings.Add(1)}); err != nil {
		return fmt.Errorf("open heartbeats: %w", err)
	}
	var pinging sync.WaitGroup
	defer pinging.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pinging.Go(func() { p.sendPings(ctx, beats) })
	for {
		beat, err := beats.Recv()
		if err != nil {
			return fmt.Errorf("receive heartbeat: %w", err)
		}
		if beat.GetSerial() != string(serial) {
			return fmt.Errorf("heartbeat of worker %s names %s: %w", serial, beat.GetSerial(), worker.ErrInvalid)
		}
		p.hear(beat)
	}
}

func (p *pulse) sendPings(ctx context.Context, beats workerv1.WorkerService_HeartbeatClient) {
	for {
		select {
		case n := <-p.ask:
			if beats.Send(&workerv1.HeartbeatRequest{Ping: n}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *pulse) hear(beat *workerv1.HeartbeatResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.last, p.beat, p.beatAt, p.pong = now, beat, now, max(p.pong, beat.GetPong())
	close(p.changed)
	p.changed = make(chan struct{})
}

// alive takes note of a sign of life other than a heartbeat.
func (p *pulse) alive() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
}

// until waits until what was heard is enough; enough is called with the lock
// held.
func (p *pulse) until(ctx context.Context, enough func() bool) error {
	for {
		p.mu.Lock()
		met, changed := enough(), p.changed
		p.mu.Unlock()
		if met {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
		h.VaultIntegrity, h.VaultFault = b.GetVaultIntegrity(), b.GetVaultFault()
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
		if !s.pulse.beatAt.After(since) {
			return false
		}
		fault = s.pulse.beat.GetVaultFault()
		return s.pulse.beat.GetVaultIntegrity() || fault != ""
	})
	if errors.Is(err, context.DeadlineExceeded) {
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
	n := s.pulse.pings.Add(1)
	select {
	case s.pulse.ask <- n:
	case <-ctx.Done():
		return fmt.Errorf("ping worker %s: %w", serial, ctx.Err())
	}
	return s.pulse.until(ctx, func() bool { return s.pulse.pong >= n })
}

func (b *Broker) session(serial worker.Serial) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[serial]
}

// Missed is the number of whole heartbeat intervals without a sign of life,
// counted from since if there was none after it.
func (b *Broker) Missed(serial worker.Serial, since time.Time) int {
	if last := b.Health(serial).Last; last.After(since) {
		since = last
	}
	return int(time.Since(since) / b.Interval)
}
