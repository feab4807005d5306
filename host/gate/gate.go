// Package gate is CALEON: the checks that every envelope passes before it is
// recorded and routed, in one fixed order. It decides and it tells the record
// of each refusal; it routes nothing and keeps nothing but the replay window
// and the counts. A nil error from Admit means: this sender, known and not
// revoked, signed exactly these bytes, now, once, for a worker that knows the
// kind, and the payload fits the task's schema.
//
// A refusal is a *worker.Refusal with one of the codes of codes.go. What is
// refused before the signature holds is counted for the peer, never for the
// sender that the envelope claims; see refusals.go.
package gate

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Directory knows workers and clients. An unknown one is worker.ErrNotFound.
type Directory interface {
	Worker(ctx context.Context, serial worker.Serial) (worker.Worker, error)
	// Client is the key and name of an enrolled client; revoked is true when it
	// may no longer send.
	Client(ctx context.Context, id string) (name string, public ed25519.PublicKey, revoked bool, err error)
}

// Kinds knows what the worker types' tasks take.
type Kinds interface {
	// InputSchema is the JSON Schema of a task kind's payload, by the digest of
	// the plugin that provides it; worker.ErrNotFound if it has no such kind.
	InputSchema(ctx context.Context, pluginDigest, kind string) ([]byte, error)
}

// Recorder makes entries durable.
type Recorder interface {
	Record(ctx context.Context, entry record.Entry) error
}

// Past reads back what the gate let through or refused since a time.
type Past interface {
	// NewestBefore is when, before a time, something was recorded last; zero for
	// never.
	NewestBefore(ctx context.Context, at time.Time) (time.Time, error)
	EntriesSince(ctx context.Context, since time.Time, visit func(record.Entry) error) error
}

// Config is what a Gate needs. All fields are required but NotBefore
// and Now.
type Config struct {
	Directory Directory
	Kinds     Kinds
	Recorder  Recorder
	// NotBefore refuses envelopes that were issued earlier: the record of that
	// time was lost. Zero refuses none.
	NotBefore time.Time
	Logger    hclog.Logger
	Now       func() time.Time // time.Now unless a test needs another
}

// Gate checks envelopes. It is safe for concurrent use.
type Gate struct {
	Config

	peers    *limiters
	senders  *limiters
	seen     *window
	refusals *refusals
	schemas  *schemas
}

// Admission is what the gate found out about an envelope that it let through.
type Admission struct {
	Envelope *workerv1.Envelope
	Header   *workerv1.Header
	Worker   worker.Worker
}

// Rates of the gate, in envelopes a second with a burst of twice that.
const (
	peerRate   = 20_000
	senderRate = 10_000
)

// New makes a gate whose replay window is filled from the past: every envelope
// that could still pass the freshness check is in it. Where the past cannot be
// read the gate refuses all that could have passed before now.
func New(ctx context.Context, c Config, past Past) *Gate {
	if c.Now == nil {
		c.Now = time.Now
	}
	g := &Gate{
		Config:   c,
		peers:    newLimiters(peerRate, c.Now),
		senders:  newLimiters(senderRate, c.Now),
		seen:     newWindow(c.Now),
		refusals: newRefusals(c),
		schemas:  newSchemas(c.Kinds),
	}
	g.seen.refuseBefore(c.NotBefore)
	if err := g.seen.fill(ctx, past); err != nil {
		c.Logger.Warn("replay window not rebuilt: what could have passed before this start is refused", "error", err)
		// An envelope may have been issued ahead of this host's clock.
		g.seen.refuseBefore(c.Now().Add(envelope.MaxSkew))
	}
	return g
}

// Run writes the summaries of early refusals until ctx ends, then once more.
func (g *Gate) Run(ctx context.Context) error { return g.refusals.run(ctx) }

// Admit passes env or says why not. peer names the process that sent it, as its
// uid and pid: all its connections are one peer.
func (g *Gate) Admit(ctx context.Context, peer string, env *workerv1.Envelope) (*Admission, error) {
	return g.admit(ctx, peer, origin{}, env)
}

// origin is where an envelope comes from, if not from a client.
type origin struct {
	key ed25519.PublicKey            // of the only sender that it may have; nil for any client
	may func(to worker.Worker) error // whether it may be sent to that worker
}

// AdmitCall is Admit for an envelope that came by a worker's own door: its sender
// has to be that worker's key, and its recipient of a type that the worker was
// granted to call.
func (g *Gate) AdmitCall(ctx context.Context, peer string, caller worker.Worker, env *workerv1.Envelope) (*Admission, error) {
	return g.admit(ctx, peer, origin{caller.PublicKey, func(to worker.Worker) error {
		return granted(caller, capability.Capability{Kind: capability.Call, Name: to.Type}.String(), CallNotGranted)
	}}, env)
}

// AdmitIngress is Admit for what came in by a worker's port, under a path that is
// granted: the sender is the host itself, with that key.
func (g *Gate) AdmitIngress(ctx context.Context, peer string, key ed25519.PublicKey, grant string, env *workerv1.Envelope) (*Admission, error) {
	return g.admit(ctx, peer, origin{key, func(to worker.Worker) error { return granted(to, grant, IngressNotGranted) }}, env)
}

// granted says whether a worker has a grant.
func granted(w worker.Worker, grant, code string) error {
	if !slices.Contains(w.Grants, grant) {
		return worker.Refuse(code, "worker %s was not granted %s", w.Serial, grant)
	}
	return nil
}

func (g *Gate) admit(ctx context.Context, peer string, from origin, env *workerv1.Envelope) (*Admission, error) {
	a, err := g.identify(ctx, peer, from, env)
	if err != nil {
		return nil, g.refusals.unproven(peer, err)
	}
	if err := g.authorize(ctx, from, a); err != nil {
		return nil, g.refusals.proven(ctx, peer, a, err)
	}
	return a, nil
}

// Refused records that an envelope which the gate let through could not be
// routed after all. It returns err.
func (g *Gate) Refused(ctx context.Context, peer string, a *Admission, err error) error {
	return g.refusals.proven(ctx, peer, a, err)
}

// identify runs the checks up to the proof: until they hold, nothing that the
// envelope says of its sender is known to be true.
func (g *Gate) identify(ctx context.Context, peer string, from origin, env *workerv1.Envelope) (*Admission, error) {
	if len(env.GetPayload()) > envelope.MaxPayload {
		return nil, worker.Refuse(PayloadTooLarge, "payload of %d bytes, at most %d are carried", len(env.GetPayload()), envelope.MaxPayload)
	}
	if !g.peers.allow(peer) {
		return nil, worker.Refuse(RateLimited, "more than %d envelopes a second from one process", peerRate)
	}
	h, err := envelope.Parse(env)
	if err != nil {
		return nil, refusal(err, Malformed)
	}
	a := &Admission{Envelope: env, Header: h}
	if a.Worker, err = g.recipient(ctx, h.GetRecipient()); err != nil {
		return nil, err
	}
	public, err := g.sender(ctx, from, h.GetSender())
	if err != nil {
		return nil, err
	}
	if err := envelope.FreshAt(h, g.Now()); err != nil {
		return nil, refusal(err, Expired)
	}
	if err := g.seen.check(h); err != nil {
		return nil, err
	}
	if err := envelope.Verify(env, h, public); err != nil {
		return nil, worker.Refuse(BadProof, "the signature does not hold for these bytes under the sender's key")
	}
	return a, nil
}

// authorize runs the checks that follow the proof. The first that fails is
// recorded in the sender's name.
func (g *Gate) authorize(ctx context.Context, from origin, a *Admission) error {
	if err := g.seen.insert(a.Header); err != nil {
		return err
	}
	if !g.senders.allow(a.Header.GetSender()) {
		return worker.Refuse(RateLimited, "more than %d envelopes a second from one client", senderRate)
	}
	// Policy is a fixed rule until there are policies to write: an enrolled
	// client may ask any living worker for any of its kinds, a worker those of the
	// types that it was granted.
	if from.may != nil {
		if err := from.may(a.Worker); err != nil {
			return err
		}
	}
	return g.schemas.check(ctx, a.Worker, a.Header.GetKind(), a.Envelope.GetPayload())
}

func (g *Gate) recipient(ctx context.Context, recipient string) (worker.Worker, error) {
	if strings.HasPrefix(recipient, "pool:") {
		return worker.Worker{}, worker.Refuse(RecipientUnknown, "no pool %s on this host", recipient)
	}
	serial, err := worker.ParseSerial(recipient)
	if err != nil {
		return worker.Worker{}, worker.Refuse(Malformed, "recipient: %v", err)
	}
	w, err := g.Directory.Worker(ctx, serial)
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return worker.Worker{}, worker.Refuse(RecipientUnknown, "no worker %s on this host", serial)
	case err != nil:
		return worker.Worker{}, fmt.Errorf("look up recipient: %w", err)
	case w.State == worker.StateRetired || w.State == worker.StateRetiring:
		return worker.Worker{}, worker.Refuse(RecipientRetired, "worker %s is %s", serial, w.State)
	case w.State == worker.StateForging:
		return worker.Worker{}, worker.Refuse(RecipientUnknown, "no worker %s on this host yet", serial)
	case w.State == worker.StateFailed || w.State == worker.StateStopped:
		return worker.Worker{}, worker.Hint(worker.Refuse(Unavailable, "worker %s is %s", serial, w.State), "run dals-host start "+w.Name)
	case w.State == worker.StateUpgrading:
		return worker.Worker{}, worker.Hint(worker.Refuse(Unavailable, "worker %s is %s", serial, w.State), "send again in a moment")
	}
	return w, nil
}

func (g *Gate) sender(ctx context.Context, from origin, id string) (ed25519.PublicKey, error) {
	if from.key != nil {
		if id != envelope.ClientID(from.key) {
			return nil, worker.Refuse(SenderUnknown, "a worker sends in its own name only")
		}
		return from.key, nil
	}
	name, public, revoked, err := g.Directory.Client(ctx, id)
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return nil, worker.Refuse(SenderUnknown, "the sender's key is not enrolled on this host")
	case err != nil:
		return nil, fmt.Errorf("look up sender: %w", err)
	case revoked:
		return nil, worker.Refuse(SenderRevoked, "client %s was revoked", name)
	}
	return public, nil
}

// refusal turns a format error of the envelope package into a refusal, keeping
// its code.
func refusal(err error, otherwise string) error {
	if format, ok := errors.AsType[*envelope.FormatError](err); ok {
		return worker.Refuse(format.Code, "%s", format.Reason)
	}
	return worker.Refuse(otherwise, "%v", err)
}
