package door

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/wire"
)

// The codes of what is refused at a door, in the order of the checks. They never
// change their meaning.
const (
	EgressBusy           = "egress_busy"
	EgressNotGranted     = "egress_not_granted"
	EgressRateLimited    = "egress_rate_limited"
	EgressUnresolved     = "egress_unresolved"
	EgressAddressRefused = "egress_address_refused"
	EgressUnreachable    = "egress_unreachable"
	EgressNotRecorded    = "egress_not_recorded"
)

// recordTimeout bounds one write to the record.
const recordTimeout = 30 * time.Second

// answer does what a worker asks for, and nothing else.
func (o *door) answer(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		if err := o.egress(w, r); err != nil {
			o.deny(w, err)
		}
	case r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, wire.PickPath):
		if err := o.pick(w, r); err != nil {
			o.denyCall(w, err)
		}
	case r.Method == http.MethodPost && r.URL.Path == wire.CallPath:
		if err := o.call(w, r); err != nil {
			o.denyCall(w, err)
		}
	default:
		http.Error(w, "a door knows nothing of this", http.StatusNotFound)
	}
}

// deny says no, and counts it.
func (o *door) deny(w http.ResponseWriter, err error) {
	refusal, ok := errors.AsType[*worker.Refusal](err)
	if !ok {
		o.Logger.Warn("connection of a worker failed", "serial", o.worker.Serial, "error", err)
		refusal = worker.Refuse(EgressUnreachable, "the host could not do it")
	}
	o.refusals.add(refusal)
	status := http.StatusBadGateway
	switch refusal.Code {
	case EgressNotGranted, EgressAddressRefused:
		status = http.StatusForbidden
	case EgressRateLimited:
		status = http.StatusTooManyRequests
	case EgressNotRecorded:
		status = http.StatusServiceUnavailable
	}
	w.Header().Set(wire.DoorCode, refusal.Code)
	http.Error(w, refusal.Reason, status)
}

// egress makes one connection and stays with it to its end. An error is told
// before anything was connected.
func (o *door) egress(w http.ResponseWriter, r *http.Request) error {
	asked := string(capability.Egress) + ":" + r.Host
	if !slices.Contains(o.worker.Grants, asked) {
		return worker.Refuse(EgressNotGranted, "%.300q is not granted to this worker", r.Host)
	}
	granted, err := capability.Parse(asked)
	if err != nil {
		return worker.Refuse(EgressNotGranted, "%v", err)
	}
	if !o.rate.Allow() {
		return worker.Refuse(EgressRateLimited, "more than %d connections a second", openRate)
	}
	ctx, cancel := context.WithTimeout(r.Context(), connectTimeout)
	defer cancel()
	far, address, err := o.connect(ctx, granted)
	if err != nil {
		return err
	}
	defer far.Close()
	fields := record.EgressFields{Host: granted.Host, Port: int(granted.Port), Address: address.String()}
	opened, err := o.note(record.EgressOpened, fields)
	if err != nil {
		o.Logger.Warn("connection of a worker not recorded, and not made", "serial", o.worker.Serial, "error", err)
		return worker.Refuse(EgressNotRecorded, "the host's record takes nothing at the moment")
	}
	o.traffic.connections.Add(1)
	o.traffic.open.Add(1)
	defer o.traffic.open.Add(-1)
	fields.OpenedIndex = &opened
	o.carry(w, far, fields)
	return nil
}

// note writes an entry of a connection. It does not heed the end of the door: what
// has happened has happened.
func (o *door) note(kind record.Kind, fields record.EgressFields) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	return o.Recorder.Record(ctx, record.Entry{At: time.Now(), Kind: kind, Worker: record.NameOf(o.worker), Egress: &fields})
}

// carry takes bytes both ways until both are through, and writes down how it was.
func (o *door) carry(w http.ResponseWriter, far net.Conn, fields record.EgressFields) {
	var sent, received atomic.Uint64
	near, buffered, err := http.NewResponseController(w).Hijack()
	outcome := "aborted"
	if err == nil {
		defer near.Close()
		if err = near.SetDeadline(time.Time{}); err == nil {
			_, err = io.WriteString(near, "HTTP/1.1 200 Connected\r\n\r\n")
		}
	}
	if err == nil {
		p := &pair{near: near, early: buffered.Reader, far: far, sent: &sent, received: &received, all: o.traffic}
		outcome = p.run(o.ends, o.idle)
	}
	fields.Sent, fields.Received, fields.Outcome = sent.Load(), received.Load(), outcome
	if _, err := o.note(record.EgressClosed, fields); err != nil {
		o.Logger.Error("end of a connection not recorded", "serial", o.worker.Serial, "egress", fmt.Sprintf("%+v", fields), "error", err)
	}
}

// pair is the two ends of a connection.
type pair struct {
	near           net.Conn      // the worker
	early          *bufio.Reader // reads it, with what came early
	far            net.Conn
	sent, received *atomic.Uint64
	all            *traffic
}

// run is how it ended: closed (both sides said so), idle, aborted, or cut by the
// end of the door.
func (p *pair) run(ends context.Context, limit time.Duration) string {
	hangUp := func() { _ = p.near.SetDeadline(time.Unix(1, 0)); _ = p.far.Close() } // near is closed once it is written down
	var idle atomic.Bool
	watch := time.AfterFunc(limit, func() { idle.Store(true); hangUp() })
	defer watch.Stop()
	defer context.AfterFunc(ends, hangUp)()
	results := make(chan error, 2)
	go func() { results <- pump(p.far, p.early, watch, limit, p.sent, &p.all.sent) }()
	go func() { results <- pump(p.near, p.far, watch, limit, p.received, &p.all.received) }()
	first := <-results
	if first != nil {
		hangUp()
	}
	second := <-results
	switch {
	case ends.Err() != nil:
		return "cut"
	case idle.Load():
		return "idle"
	case first != nil || second != nil:
		return "aborted"
	}
	return "closed"
}

// pump copies until the end of from, and passes that on.
func pump(to net.Conn, from io.Reader, watch *time.Timer, limit time.Duration, counts ...*atomic.Uint64) error {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			watch.Reset(limit)
			written, failed := to.Write(buffer[:n])
			for _, count := range counts {
				count.Add(uint64(written))
			}
			if failed != nil {
				return failed
			}
		}
		if errors.Is(err, io.EOF) {
			return to.(interface{ CloseWrite() error }).CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}
