package broker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// pulse hears one worker's heartbeats, over all its connections.
type pulse struct {
	interval time.Duration
	ask      chan chan<- uint64 // asks for a ping and its number; answered at once

	mu      sync.Mutex
	last    time.Time                   // of the last sign of life
	beat    *workerv1.HeartbeatResponse // the latest
	fault   string                      // what it says of its vault; empty when that is whole
	beatAt  time.Time
	ping    uint64        // the highest sent
	pong    uint64        // the highest heard, of those sent
	changed chan struct{} // closed and replaced at every heartbeat
}

func newPulse(interval time.Duration) *pulse {
	return &pulse{interval: interval, changed: make(chan struct{}), ask: make(chan chan<- uint64)}
}

// run reads one heartbeat stream until it ends.
func (p *pulse) run(ctx context.Context, serial worker.Serial, beats workerv1.WorkerService_HeartbeatClient) error {
	if err := beats.Send(&workerv1.HeartbeatRequest{IntervalMs: uint32(p.interval.Milliseconds()), Ping: p.nextPing()}); err != nil {
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
			return fmt.Errorf("heartbeat of worker %s names %q: %w", serial, beat.GetSerial(), worker.ErrInvalid)
		}
		p.hear(beat)
	}
}

func (p *pulse) sendPings(ctx context.Context, beats workerv1.WorkerService_HeartbeatClient) {
	for {
		select {
		case asked := <-p.ask:
			n := p.nextPing()
			asked <- n
			if beats.Send(&workerv1.HeartbeatRequest{Ping: n}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *pulse) nextPing() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ping++
	return p.ping
}

// hear takes a heartbeat in. What a worker says is a stranger's: a pong that
// answers no ping is none, and its words are cleaned.
func (p *pulse) hear(beat *workerv1.HeartbeatResponse) {
	fault := clean(beat.GetVaultFault())
	if fault == "" && !beat.GetVaultIntegrity() {
		fault = "no reason given"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.last, p.beat, p.fault, p.beatAt = now, beat, fault, now
	if pong := beat.GetPong(); pong <= p.ping {
		p.pong = max(p.pong, pong)
	}
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
