package broker

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Task names the task that a worker works on when it calls another.
type Task struct {
	EnvelopeID string
	Attempt    uint32
}

// call is what a delivery has of the worker that called for it; zero for one that
// a client sent.
type call struct {
	caller *worker.Worker
	parent string // the envelope of the caller's task
	depth  int    // how many calls stand on one another
	until  time.Time
	own    bool // it is the host's
}

// maxDepth bounds how many calls stand on one another. With the time of the first
// task, which holds for all of them, it keeps workers from calling each other
// without end.
const maxDepth = 8

// Call is Send for an envelope that a worker sends while it works on a task. It
// has no more time than that task has left. What an earlier host knew of the
// task's own callers is forgotten: such a task counts as a client's.
func (b *Broker) Call(ctx context.Context, caller worker.Worker, of Task, env *workerv1.Envelope, timeout time.Duration) (Reply, error) {
	timeout, err := checkTimeout(timeout)
	if err != nil {
		return Reply{}, err
	}
	peer := "worker " + string(caller.Serial)
	a, err := b.Gate.AdmitCall(ctx, peer, caller, env)
	if err != nil {
		return Reply{}, err
	}
	parent := b.owed(attempt{caller.Serial, of.EnvelopeID, of.Attempt})
	switch {
	case parent == nil:
		err = worker.Refuse(callWithoutTask, "worker %s does not work on that task", caller.Serial)
	case parent.call.depth >= maxDepth:
		err = worker.Refuse(callTooDeep, "more than %d calls stand on one another", maxDepth)
	case time.Until(parent.Deadline) <= 0:
		err = worker.Refuse(callWithoutTask, "the time of the task is over")
	}
	if err != nil {
		return Reply{}, b.Gate.Refused(context.WithoutCancel(ctx), peer, a, err)
	}
	from := call{caller: &caller, parent: parent.EnvelopeID, depth: parent.call.depth + 1, until: parent.Deadline}
	reply, err := b.send(ctx, peer, a, from, min(timeout, time.Until(parent.Deadline)))
	if err != nil {
		return reply, fmt.Errorf("call: %w", err)
	}
	return reply, nil
}

// Ingress is Send for an envelope of the host's own, signed with that key, for
// what came in by a worker's port under a granted path.
func (b *Broker) Ingress(ctx context.Context, peer string, key ed25519.PublicKey, grant string, env *workerv1.Envelope, timeout time.Duration) (Reply, error) {
	a, err := b.Gate.AdmitIngress(ctx, peer, key, grant, env)
	if err != nil {
		return Reply{}, err
	}
	return b.send(ctx, peer, a, call{own: true}, timeout)
}
