package sdk

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// job is one attempt that has passed the gate.
type job struct {
	task    Task
	header  *workerv1.Header
	stamp   *workerv1.Stamp
	payload []byte
}

func (j *job) attempt() attempt { return attempt{id: j.header.Id, n: j.stamp.Attempt} }

// outcome is how a job ended.
type outcome struct {
	status  workerv1.ResultStatus
	payload []byte
}

// accept looks a delivery over and starts its task, or answers by out why not.
// It never waits for a task.
func (r *runner) accept(d *workerv1.Delivery, out *outbox) {
	j, refused := r.admit(d)
	if refused == nil {
		refused = r.start(j, out)
	}
	if refused != nil {
		r.refuse(d, refused, out)
	}
}

// admit makes a job of a delivery that may become one.
func (r *runner) admit(d *workerv1.Delivery) (*job, *refusal) {
	header, stamp, refused := r.gate.check(d)
	if refused != nil {
		return nil, refused
	}
	if fault := r.integrity.current(); fault != "" {
		return nil, refuse(codeVaultIntegrity, "vault_integrity=false: %s", fault)
	}
	task, ok := r.typ.kinds[header.Kind]
	if !ok {
		return nil, refuse(codeKindUnknown, "workers of type %s have no task %s", r.typ.Name, header.Kind)
	}
	return &job{task: task, header: header, stamp: stamp, payload: d.GetEnvelope().GetPayload()}, nil
}

// start starts a job that is new. Its task may have to wait for its turn.
func (r *runner) start(j *job, out *outbox) *refusal {
	ctx, cancel := r.taskContext(j)
	mine, refused := r.desk.claim(out, j.attempt(), j.stamp, cancel)
	if mine != nil {
		go r.work(ctx, cancel, j, mine)
		return nil
	}
	cancel()
	if refused == nil {
		r.worker.log.Debug("ignored a delivery", "envelope", j.header.Id, "attempt", j.stamp.Attempt)
	}
	return refused
}

// taskContext ends at the task's deadline or with the worker, never with the
// stream that brought it.
func (r *runner) taskContext(j *job) (context.Context, context.CancelFunc) {
	ctx := context.WithValue(r.tasks, workerKey, r.worker)
	ctx = context.WithValue(ctx, callKey, CallInfo{
		EnvelopeID: j.header.Id,
		Sender:     j.header.Sender,
		Kind:       j.header.Kind,
		Attempt:    j.stamp.Attempt,
		LogIndex:   j.stamp.LogIndex,
		Glyph:      j.header.Glyph,
	})
	return context.WithDeadline(ctx, time.UnixMilli(j.stamp.DeadlineUnixMs))
}

// work does a claimed job and hands its result in, whatever the task does to
// its goroutine.
func (r *runner) work(ctx context.Context, cancel context.CancelFunc, j *job, mine *turn) {
	defer cancel()
	done := failed(codePanicked, "the task panicked; the worker's log says where")
	defer func() {
		if p := recover(); p != nil {
			r.worker.log.Error("task panicked", "kind", j.header.Kind, "envelope", j.header.Id,
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		r.handIn(j, done)
	}()
	select {
	case <-mine.come:
	case <-ctx.Done():
	}
	done = perform(ctx, j)
}

// perform runs the task on a payload that fits, if its time is not over.
func perform(ctx context.Context, j *job) outcome {
	if over := overdue(ctx); over != nil {
		return *over
	}
	schemas := j.task.schemas()
	if schemas.err != nil { // the type is not what a probe has seen
		return failed(codeFailed, schemas.err.Error())
	}
	if err := schemas.input.check(j.payload); err != nil {
		return refused(codeSchemaMismatch, err.Error())
	}
	run, err := j.task.prepare(j.payload)
	if err != nil {
		return refused(codeSchemaMismatch, err.Error())
	}
	if over := overdue(ctx); over != nil { // to look at a payload takes time too
		return *over
	}
	output, err := run(ctx)
	switch {
	case err != nil:
		return failed(codeOf(ctx, err), err.Error())
	case len(output) > envelope.MaxPayload:
		return failed(codeTooLarge, fmt.Sprintf("the output has %d bytes, more than %d", len(output), envelope.MaxPayload))
	}
	return outcome{status: workerv1.ResultStatus_RESULT_STATUS_OK, payload: output}
}

// overdue is the outcome of a task that shall not begin any more, or nil.
func overdue(ctx context.Context) *outcome {
	var over outcome
	due, bounded := ctx.Deadline()
	switch err := ctx.Err(); {
	case bounded && !time.Now().Before(due): // ctx may not have noticed, where the process was stopped
		over = refused(codeExpired, pastDeadline)
	case err != nil:
		over = failed(codeOf(ctx, err), err.Error())
	default:
		return nil
	}
	return &over
}

func failed(code, text string) outcome {
	return outcome{status: workerv1.ResultStatus_RESULT_STATUS_FAILED, payload: encodeFailure(code, text)}
}

func refused(code, text string) outcome {
	return outcome{status: workerv1.ResultStatus_RESULT_STATUS_REFUSED, payload: encodeFailure(code, text)}
}

func (r *runner) handIn(j *job, o outcome) {
	result, err := r.sign(j.header, j.stamp.Attempt, o)
	if err != nil { // only for a header that the gate would not have let in
		r.worker.log.Error("could not sign a result", "envelope", j.header.Id, "error", err)
	}
	r.desk.finish(j.attempt(), result, o.status)
}

// refuse answers a delivery that was not claimed. One that does not even say
// what it is gets no answer: there is nothing to answer to.
func (r *runner) refuse(d *workerv1.Delivery, why *refusal, out *outbox) {
	header, attempt := claimedHeader(d)
	r.worker.log.Warn("refused a delivery", "code", why.code, "reason", why.reason, "envelope", header.Id)
	result, err := r.sign(header, attempt, refused(why.code, why.reason))
	if err == nil && !out.push(item{frame: resultFrame(result)}) {
		r.worker.log.Warn("dropped a refusal: the host does not read", "envelope", header.Id)
	}
}

// sign makes the result of an attempt. It carries on the trace of what it
// answers.
func (r *runner) sign(h *workerv1.Header, attempt uint32, o outcome) (*workerv1.Envelope, error) {
	return envelope.New(r.worker.key, r.worker.identity.WorkerSerial, &workerv1.Header{
		Recipient: h.Sender,
		Kind:      h.Kind,
		Glyph:     h.Glyph,
		InReplyTo: h.Id,
		Attempt:   attempt,
		Status:    o.status,
	}, o.payload)
}
