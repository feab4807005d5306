// Package broker carries envelopes to workers and results back, and hears
// their heartbeats.
//
// For every attached worker it keeps one session: a mutually authenticated
// connection to the socket in the worker's own folder, re-dialled for as long
// as the worker is attached, with a stream for envelopes and one for
// heartbeats. Send is the whole life of an envelope; it fails closed: an
// envelope is durable in the record before it is routed, a result before its
// sender hears of it. An envelope that was admitted gets exactly one closing
// entry: the worker's signed result, or the host's word that there was none in
// time. That holds across a crash of the host, because what is outstanding
// stands in the registry, and across a full disk, because a closing entry is
// tried again until it is recorded.
//
// A worker is a stranger's code. What one can make the host hold, log or write
// is bounded for each; one that does not read, answers nonsense or reconnects
// without end harms itself.
//
// The broker does not decide who may send (package gate does) nor whether a
// silent worker is dead (package supervise does).
package broker

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Gate lets envelopes pass or refuses them.
type Gate interface {
	Admit(ctx context.Context, peer string, env *workerv1.Envelope) (Admitted, error)
	// AdmitCall is Admit for an envelope that came from a worker itself.
	AdmitCall(ctx context.Context, peer string, caller worker.Worker, env *workerv1.Envelope) (Admitted, error)
	// AdmitIngress is Admit for an envelope of the host's own, which has that key.
	AdmitIngress(ctx context.Context, peer string, key ed25519.PublicKey, grant string, env *workerv1.Envelope) (Admitted, error)
	// Refused records that an admitted envelope could not be routed after all.
	// It returns err.
	Refused(ctx context.Context, peer string, a Admitted, err error) error
}

// Admitted is an envelope that passed the gate.
type Admitted struct {
	Envelope *workerv1.Envelope
	Header   *workerv1.Header
	Worker   worker.Worker
}

// Authority gives the TLS configuration to reach exactly one worker.
type Authority interface {
	HostTLS(serial string) (*tls.Config, error)
}

// Config is what a Broker needs.
type Config struct {
	Gate      Gate
	Registry  *registry.Registry
	Authority Authority
	StampKey  ed25519.PrivateKey
	// Interval is the time between two heartbeats of a worker.
	Interval time.Duration
	Logger   hclog.Logger
}

// Broker holds the sessions. It is safe for concurrent use.
type Broker struct {
	Config

	ctx    context.Context // of all sessions; ends with Close, under mu
	cancel context.CancelFunc
	wg     sync.WaitGroup

	arrivals     *arrivals
	helloTimeout time.Duration // the constant; tests have less time

	mu       sync.Mutex
	sessions map[worker.Serial]*session
	waiting  map[attempt]*delivery
}

// DefaultTimeout bounds a task whose sender names no time; MaxTimeout is the
// most that a sender may name.
const (
	DefaultTimeout = 30 * time.Second
	MaxTimeout     = 5 * time.Minute
)

// lastWord is what a worker gets, once a task's time is over, to say so itself: a
// signed result is worth more than the host's word that there was none.
const lastWord = 500 * time.Millisecond

// New makes a broker that knows what the registry says is outstanding: results
// that workers made while no host lived are accepted. Start lets the time of
// that run.
func New(ctx context.Context, c Config) (*Broker, error) {
	outstanding, err := c.Registry.Deliveries(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("read outstanding deliveries: %w", err)
	}
	b := &Broker{Config: c, arrivals: newArrivals(c.Logger), helloTimeout: helloTimeout, sessions: map[worker.Serial]*session{}, waiting: map[attempt]*delivery{}}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, row := range outstanding {
		d := newDelivery()
		d.Delivery = row
		b.waiting[d.attempt()] = d
	}
	return b, nil
}

// readoptionGrace is how long a new host waits for the result of an envelope
// whose deadline passed while no host lived: long enough to reach its worker.
const readoptionGrace = 15 * time.Second

// Start sees to it that what an earlier host left outstanding is closed when
// its time is over. It is called once the workers that live are attached.
func (b *Broker) Start() {
	for _, d := range b.outstanding(func(*delivery) bool { return true }) {
		b.oversee(d, patience(d.Deadline, time.Now()))
	}
}

// patience is how long the result of an earlier host's envelope is waited for. Its
// deadline was told by that host's clock, which this one may be far from: neither
// is anything given up at once, nor is it waited for longer than anything ever is.
func patience(deadline, now time.Time) time.Duration {
	return min(max(deadline.Sub(now), readoptionGrace), MaxTimeout)
}

// Close ends every session. Workers go on, and what they owe stays outstanding
// for the next host.
func (b *Broker) Close() {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.wg.Wait()
	b.arrivals.close()
}

// Reply is the outcome of an envelope that reached its worker.
type Reply struct {
	Result        *workerv1.Envelope
	Worker        worker.Worker
	AdmittedIndex uint64
	ResultIndex   uint64
	Duration      time.Duration
}

// Send carries one envelope: gate, place and link, record, route, result,
// record, reply. peer names the connection it came by; timeout bounds the task
// from its admission. When ctx ends the worker is asked to end the task, unless
// the cause is worker.ErrUnavailable: then it is the host that ends, and the
// worker goes on. The result is recorded all the same.
func (b *Broker) Send(ctx context.Context, peer string, env *workerv1.Envelope, timeout time.Duration) (Reply, error) {
	timeout, err := checkTimeout(timeout)
	if err != nil {
		return Reply{}, err
	}
	a, err := b.Gate.Admit(ctx, peer, env)
	if err != nil {
		return Reply{}, err
	}
	return b.send(ctx, peer, a, call{}, timeout)
}

// send carries what passed the gate.
func (b *Broker) send(ctx context.Context, peer string, a Admitted, from call, timeout time.Duration) (Reply, error) {
	a.Envelope = bare(a.Envelope)
	d, err := b.reserve(ctx, a, timeout)
	if err == nil {
		d.call = from
		err = b.admit(d, a, timeout)
	}
	if err != nil {
		// Not the caller's context: a refusal is recorded also when its cause is
		// that the caller's time is over.
		return Reply{}, b.Gate.Refused(context.WithoutCancel(ctx), peer, a, err)
	}
	b.oversee(d, timeout+lastWord)
	b.route(ctx, d, a.Envelope)
	return b.await(ctx, d, a.Worker)
}

func checkTimeout(timeout time.Duration) (time.Duration, error) {
	switch {
	case timeout == 0:
		return DefaultTimeout, nil
	case timeout < 0 || timeout > MaxTimeout:
		return 0, worker.Hint(fmt.Errorf("timeout %s: %w", timeout, worker.ErrInvalid), fmt.Sprintf("use a time up to %s", MaxTimeout))
	}
	return timeout, nil
}

// bare is an envelope with what was checked of it and nothing else: protobuf
// carries fields that it does not know along, of any size.
func bare(e *workerv1.Envelope) *workerv1.Envelope {
	return &workerv1.Envelope{
		Header: e.GetHeader(), Payload: e.GetPayload(),
		Proof: &workerv1.Proof{Kind: &workerv1.Proof_Signature{Signature: e.GetProof().GetSignature()}},
	}
}

// await waits for the outcome on behalf of the sender.
func (b *Broker) await(ctx context.Context, d *delivery, w worker.Worker) (Reply, error) {
	select {
	case <-d.told:
		return d.reply(w)
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), worker.ErrUnavailable) {
			return Reply{}, hostEnds(d)
		}
		b.cancelTask(d.attempt())
		return Reply{}, ctx.Err()
	case <-b.ctx.Done():
		return Reply{}, hostEnds(d)
	}
}

func hostEnds(d *delivery) error {
	return fmt.Errorf("host ends; the next one records the result of envelope %s: %w", d.EnvelopeID, worker.ErrUnavailable)
}
