package client

import (
	"context"
	"iter"
	"time"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// EventsRequest asks what happened to workers.
type EventsRequest struct {
	Worker string // a name or a serial; empty for all
	// Follow goes on with what happens until the context ends.
	Follow bool
	// Since leaves out what happened before.
	Since time.Time
}

// Event is one thing that happened to a worker.
type Event struct {
	At Time `json:"at"`
	// Event is forged, forge_failed, lost, restarted, failed, stopped, started,
	// upgraded or retired.
	Event        string `json:"event"`
	WorkerName   string `json:"worker_name"`
	WorkerSerial string `json:"worker_serial"`
	Reason       string `json:"reason,omitempty"`
	LogIndex     uint64 `json:"log_index"` // of the record's entry that says so
}

// Events gives what happened to workers, oldest first, as the record has it. The
// first error is the last thing that it gives.
func (c *Client) Events(ctx context.Context, r EventsRequest) iter.Seq2[Event, error] {
	request := &hostv1.StreamEventsRequest{Worker: r.Worker, Follow: r.Follow, SinceUnixMs: sinceUnixMs(r.Since)}
	return streamed(ctx, c, "events", request, c.host.StreamEvents, func(batch *hostv1.StreamEventsResponse) []Event {
		events := make([]Event, len(batch.GetEvents()))
		for i, e := range batch.GetEvents() {
			events[i] = Event{
				At: timeOf(e.GetAt()), Event: e.GetEvent(), WorkerName: e.GetWorkerName(), WorkerSerial: e.GetWorkerSerial(),
				Reason: e.GetReason(), LogIndex: e.GetLogIndex(),
			}
		}
		return events
	})
}
