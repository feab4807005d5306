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
// stands in the registry.
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

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Gate lets envelopes pass or refuses them.
type Gate interface {
	Admit(ctx context.Context, peer string, env *workerv1.Envelope) (Admitted, error)
	// Refused records that an admitted envelope could not be routed after all.
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

	ctx    context.Context // of all sessions; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	sessions map[worker.Serial]*session
	waiting  map[attempt]*delivery
}

// workerUnavailable is the code for a worker that cannot be reached now.
const workerUnavailable = "worker_unavailable"

// DefaultTimeout bounds a task whose sender names no time; MaxTimeout is the
// most that a sender may name.
const (
	DefaultTimeout = 30 * time.Second
	MaxTimeout     = 5 * time.Minute
)

// New makes a broker and takes over what the registry says is outstanding:
// results that workers made while no host lived are waited for.
func New(ctx context.Context, c Config) (*Broker, error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b := &Broker{Config: c, ctx: run, cancel: cancel, sessions: map[worker.Serial]*session{}, waiting: map[attempt]*delivery{}}
	outstanding, err := c.Registry.Deliveries(ctx, "")
	if err != nil {
		cancel()
		return nil, fmt.Errorf("read outstanding deliveries: %w", err)
	}
	for _, d := range outstanding {
		b.oversee(newDelivery(d, max(time.Until(d.Deadline), readoptionGrace)))
	}
	return b, nil
}

// readoptionGrace is how long a new host waits for the result of an envelope
// whose deadline passed while no host lived: long enough to reach its worker.
const readoptionGrace = 15 * time.Second

// Close ends every session. Workers go on.
func (b *Broker) Close() {
	b.cancel()
	b.wg.Wait()
}

// Reply is the outcome of an envelope that reached its worker.
type Reply struct {
	Result        *workerv1.Envelope
	Worker        worker.Worker
	AdmittedIndex uint64
	ResultIndex   uint64
	Duration      time.Duration
}

// Send carries one envelope: gate, record, route, result, record, reply. peer
// names the connection it came by; timeout bounds the task from its admission.
// When ctx ends the worker is asked to end the task; its result is recorded all
// the same.
func (b *Broker) Send(ctx context.Context, peer string, env *workerv1.Envelope, timeout time.Duration) (Reply, error) {
	timeout, err := checkTimeout(timeout)
	if err != nil {
		return Reply{}, err
	}
	a, err := b.Gate.Admit(ctx, peer, env)
	if err != nil {
		return Reply{}, err
	}
	s, err := b.connected(ctx, a.Worker.Serial, timeout)
	if err != nil {
		return Reply{}, b.Gate.Refused(ctx, peer, a, err)
	}
	d, err := b.admit(a, timeout)
	if err != nil {
		return Reply{}, fmt.Errorf("record envelope: %w", err)
	}
	b.oversee(d)
	if err := b.route(s, d, a); err != nil {
		return Reply{}, err
	}
	reply, err := d.await(ctx, a.Worker)
	if ctx.Err() != nil {
		b.cancelTask(d.attempt())
	}
	return reply, err
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

// admit makes the admission durable: the entry, and the row that says that a
// result is owed.
func (b *Broker) admit(a Admitted, timeout time.Duration) (*delivery, error) {
	now := time.Now().UTC()
	owed := registry.Delivery{
		EnvelopeID: a.Header.GetId(), Sender: a.Header.GetSender(), Serial: a.Worker.Serial,
		Attempt: 1, Header: a.Envelope.GetHeader(), AdmittedAt: now, Deadline: now.Add(timeout),
	}
	fields := record.FieldsOfEnvelope(a.Envelope, a.Header, a.Worker.Serial)
	fields.Attempt = owed.Attempt
	entry, err := record.Entry{At: now, Kind: record.Admitted, Envelope: fields}.Encode()
	if err != nil {
		return nil, err
	}
	// Not the caller's context: what was admitted must be overseen.
	err = b.Registry.Update(b.ctx, func(tx *registry.Tx) (err error) {
		if owed.LogIndex, err = tx.Append(entry); err != nil {
			return err
		}
		return tx.PutDelivery(owed)
	})
	return newDelivery(owed, timeout), err
}

// route stamps the envelope and hands it to the worker's session.
func (b *Broker) route(s *session, d *delivery, a Admitted) error {
	hash := envelope.Hash(a.Envelope)
	stamp, signature, err := envelope.SignStamp(b.StampKey, &workerv1.Stamp{
		HeaderSha256: hash[:], AdmittedAtUnixMs: d.AdmittedAt.UnixMilli(), LogIndex: d.LogIndex,
		Serial: string(d.Serial), Attempt: d.Attempt, DeadlineUnixMs: d.Deadline.UnixMilli(),
	})
	if err != nil {
		return fmt.Errorf("stamp envelope: %w", err)
	}
	// A frame that cannot be sent any more is not an error here: the session is
	// gone, and the next one's Hello settles what became of the delivery.
	s.send(&workerv1.ExchangeRequest{Frame: &workerv1.ExchangeRequest_Delivery{
		Delivery: &workerv1.Delivery{Envelope: a.Envelope, Stamp: stamp, StampSignature: signature},
	}})
	return nil
}

// connected waits for the worker's session to be up.
func (b *Broker) connected(ctx context.Context, serial worker.Serial, timeout time.Duration) (*session, error) {
	b.mu.Lock()
	s := b.sessions[serial]
	b.mu.Unlock()
	unavailable := worker.Refuse(workerUnavailable, "worker %s is not reachable", serial)
	if s == nil {
		return nil, unavailable
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.awaitUp(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errDetached) {
			return nil, unavailable
		}
		return nil, err
	}
	return s, nil
}
