package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

const (
	// maxLine is what is passed on of one line, in bytes; the rest is dropped.
	maxLine = 16 << 10
	// maxBatch is how many lines travel in one message; with maxLine it stays
	// below what clients receive.
	maxBatch = 256
	// followEvery is how often a followed log is looked at for more.
	followEvery = 200 * time.Millisecond
)

// StreamLogs sends a worker's log lines as the worker wrote them, cut to
// maxLine. Following ends with the call, with the host, or with the log: a
// retired worker's is removed.
func (s *service) StreamLogs(r *hostv1.StreamLogsRequest, stream grpc.ServerStreamingServer[hostv1.StreamLogsResponse]) error {
	opened, err := s.Workers.Log(stream.Context(), r.GetWorker())
	if err != nil {
		return err
	}
	defer opened.Close()
	if r.GetTail() > 0 {
		if err := opened.Last(int(r.GetTail())); err != nil {
			return fmt.Errorf("find last lines: %w", err)
		}
	}
	log := &logStream{lines: bufio.NewReaderSize(opened, maxLine), since: r.GetSinceUnixMs(), send: stream.Send}
	for {
		if err := log.drain(!r.GetFollow()); err != nil {
			return err
		}
		if !r.GetFollow() {
			return nil
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.stopping:
			return log.drain(true)
		case <-time.After(followEvery):
		}
		if removed, err := opened.Removed(); removed || err != nil {
			return errors.Join(err, log.drain(true))
		}
	}
}

// logStream reads lines and sends them in batches.
type logStream struct {
	lines *bufio.Reader
	since int64
	send  func(*hostv1.StreamLogsResponse) error

	partial []byte // of a line whose end is not written yet, at most maxLine
	old     bool   // the last line that told its time is from before since
	batch   []string
}

// drain sends what is there. The last line may still be without its end: it is
// sent only with flush, otherwise kept for the next time.
func (l *logStream) drain(flush bool) error {
	for {
		part, err := l.lines.ReadSlice('\n')
		l.partial = append(l.partial, part[:min(len(part), maxLine-len(l.partial))]...)
		switch {
		case err == nil:
			if err := l.add(); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			if flush && len(l.partial) > 0 {
				if err := l.add(); err != nil {
					return err
				}
			}
			return l.flush()
		default:
			return fmt.Errorf("read log: %w", err)
		}
	}
}

func (l *logStream) add() error {
	line := bytes.TrimRight(l.partial, "\r\n")
	if l.wanted(line) {
		l.batch = append(l.batch, strings.ToValidUTF8(string(line), "\uFFFD"))
	}
	l.partial = l.partial[:0]
	if len(l.batch) < maxBatch {
		return nil
	}
	return l.flush()
}

// wanted says whether a line is from since or later. A line that tells no time
// of its own, as of a stack trace, belongs to the one before it.
func (l *logStream) wanted(line []byte) bool {
	if l.since == 0 {
		return true
	}
	var stamped struct {
		At time.Time `json:"@timestamp"`
	}
	if json.Unmarshal(line, &stamped) == nil && !stamped.At.IsZero() {
		l.old = stamped.At.UnixMilli() < l.since
	}
	return !l.old
}

func (l *logStream) flush() error {
	if len(l.batch) == 0 {
		return nil
	}
	err := l.send(&hostv1.StreamLogsResponse{Lines: l.batch})
	l.batch = nil
	return err
}
