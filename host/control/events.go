package control

import (
	"time"

	"google.golang.org/grpc"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// eventsEvery is how often followed events are looked for.
const eventsEvery = 500 * time.Millisecond

// StreamEvents sends what happened to workers. Following ends with the call, or
// with the host.
func (s *service) StreamEvents(r *hostv1.StreamEventsRequest, stream grpc.ServerStreamingServer[hostv1.StreamEventsResponse]) error {
	var since time.Time
	if ms := r.GetSinceUnixMs(); ms > 0 {
		since = time.UnixMilli(ms)
	}
	var next uint64
	var batch []*hostv1.Event
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := stream.Send(&hostv1.StreamEventsResponse{Events: batch})
		batch = nil
		return err
	}
	visit := func(e Event) error {
		batch = append(batch, &hostv1.Event{
			At: timestamp(e.At), Event: e.Event, WorkerName: e.Name, WorkerSerial: string(e.Serial), Reason: e.Reason, LogIndex: e.Index,
		})
		if len(batch) < maxBatch {
			return nil
		}
		return flush()
	}
	for {
		var err error
		if next, err = s.Workers.Events(stream.Context(), r.GetWorker(), since, next, visit); err != nil {
			return err
		}
		if err := flush(); err != nil || !r.GetFollow() {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.stopping:
			return nil
		case <-time.After(eventsEvery):
		}
	}
}
