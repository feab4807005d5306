package sdk

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

type heartbeatStream = grpc.BidiStreamingServer[workerv1.HeartbeatRequest, workerv1.HeartbeatResponse]

// The time between two heartbeats, and what a host may make of it.
const (
	defaultInterval = 2 * time.Second
	minInterval     = 50 * time.Millisecond
	maxInterval     = time.Minute
)

// Heartbeat sends a sign of life at once, then at every interval, and one more
// for each ping.
func (r *runner) Heartbeat(stream heartbeatStream) error {
	requests := make(chan *workerv1.HeartbeatRequest)
	r.streams.Go(func() { receiveHeartbeats(stream, requests) })
	ticker := time.NewTicker(defaultInterval)
	defer ticker.Stop()
	pong := uint64(0)
	for {
		if err := stream.Send(r.heartbeat(pong)); err != nil {
			return err
		}
		var open bool
		if pong, open = r.nextHeartbeat(ticker, requests); !open {
			return nil
		}
		select {
		case <-r.stopped:
			return status.Error(codes.Unavailable, "the worker has ended")
		default:
		}
	}
}

// nextHeartbeat waits until one is due; pong is what it shall answer.
func (r *runner) nextHeartbeat(ticker *time.Ticker, requests <-chan *workerv1.HeartbeatRequest) (pong uint64, open bool) {
	for {
		select {
		case <-ticker.C:
			return 0, true
		case <-r.stopped:
			return 0, true
		case request, ok := <-requests:
			if !ok {
				return 0, false
			}
			if ms := request.GetIntervalMs(); ms != 0 {
				ticker.Reset(min(max(time.Duration(ms)*time.Millisecond, minInterval), maxInterval))
			}
			if request.GetPing() != 0 {
				return request.GetPing(), true
			}
		}
	}
}

// receiveHeartbeats closes requests when the host has gone.
func receiveHeartbeats(stream heartbeatStream, requests chan<- *workerv1.HeartbeatRequest) {
	defer close(requests)
	for {
		request, err := stream.Recv()
		if err != nil {
			return
		}
		select {
		case requests <- request:
		case <-stream.Context().Done():
			return
		}
	}
}

func (r *runner) heartbeat(pong uint64) *workerv1.HeartbeatResponse {
	inFlight, done, failed := r.desk.counts()
	fault := r.integrity.current()
	return &workerv1.HeartbeatResponse{
		Serial:          r.worker.identity.WorkerSerial,
		Sequence:        r.beats.Add(1),
		VaultIntegrity:  fault == "",
		VaultFault:      fault,
		Pong:            pong,
		StartedAtUnixMs: r.started.UnixMilli(),
		TasksInFlight:   uint32(inFlight),
		TasksDone:       done,
		TasksFailed:     failed,
		RssBytes:        residentBytes(),
	}
}

// residentBytes is the process's memory, or 0 where the kernel does not tell.
func residentBytes() uint64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(statm)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
