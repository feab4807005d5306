package sdk

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// refusal is why a worker does not run what it was sent.
type refusal struct {
	code   string
	reason string
}

func (r *refusal) Error() string { return r.reason }

func refuse(code, format string, args ...any) *refusal {
	return &refusal{code: code, reason: fmt.Sprintf(format, args...)}
}

// gate is the worker's own look at every delivery. The host has looked before;
// the worker does not take its word for what it can see itself. It has no state:
// whether an attempt is new, and still due, is for the desk to say.
type gate struct {
	identity *identity.Identity
}

// check says whether d is a sender's envelope, admitted by the worker's own host
// for this worker, in time.
func (g *gate) check(d *workerv1.Delivery) (*workerv1.Header, *workerv1.Stamp, *refusal) {
	h, err := envelope.Parse(d.GetEnvelope())
	if err != nil {
		return nil, nil, refuseForm(err)
	}
	if h.Status != workerv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return nil, nil, refuse(codeMalformed, "it is a result, not a task")
	}
	sender, err := envelope.ParseClientID(h.Sender)
	if err != nil {
		return nil, nil, refuse(codeBadProof, "the sender is not a client")
	}
	if err := envelope.Verify(d.GetEnvelope(), h, sender); err != nil {
		return nil, nil, refuse(codeBadProof, "%s", err)
	}
	stamp, err := envelope.VerifyStamp(g.identity.StampKey, d)
	if err != nil {
		return nil, nil, refuse(codeBadStamp, "%s", err)
	}
	if err := g.checkAddress(h, stamp); err != nil {
		return nil, nil, err
	}
	// Against its admission, not against now: a task may have waited.
	if err := envelope.FreshAt(h, time.UnixMilli(stamp.AdmittedAtUnixMs)); err != nil {
		return nil, nil, refuseForm(err)
	}
	return h, stamp, nil
}

func (g *gate) checkAddress(h *workerv1.Header, stamp *workerv1.Stamp) *refusal {
	me, pool := g.identity.WorkerSerial, envelope.PoolPrefix+g.identity.WorkerType
	switch {
	case h.Recipient != me && h.Recipient != pool:
		return refuse(codeMisaddressed, "the envelope is for %s, not for %s", h.Recipient, me)
	case stamp.Serial != me:
		return refuse(codeMisaddressed, "the stamp is for %s, not for %s", stamp.Serial, me)
	}
	return nil
}

// forgettable is when an attempt needs no longer be remembered: past its
// deadline, even where the clock is set back a little.
func forgettable(stamp *workerv1.Stamp) time.Time {
	return time.UnixMilli(stamp.DeadlineUnixMs).Add(envelope.MaxSkew)
}

func refuseForm(err error) *refusal {
	if form, ok := errors.AsType[*envelope.FormatError](err); ok {
		return refuse(form.Code, "%s", form.Reason)
	}
	return refuse(codeMalformed, "%s", err)
}

// claimedHeader is what a refused envelope says of itself: enough to tell the
// host which one is refused, and trusted for nothing else.
func claimedHeader(d *workerv1.Delivery) (*workerv1.Header, uint32) {
	h, stamp := &workerv1.Header{}, &workerv1.Stamp{}
	if len(d.GetEnvelope().GetHeader()) > envelope.MaxHeader || proto.Unmarshal(d.GetEnvelope().GetHeader(), h) != nil {
		h.Reset()
	}
	if proto.Unmarshal(d.GetStamp(), stamp) != nil {
		stamp.Reset()
	}
	return h, stamp.Attempt
}
