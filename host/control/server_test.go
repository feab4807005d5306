package control_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// TestStopWaits: a call that runs when the host is told to end is answered.
func TestStopWaits(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := serve(t, &backend{down: func(context.Context, time.Duration) (int, error) {
		close(entered)
		<-leave
		return 3, nil
	}}, filepath.Join(privateDir(t), "s"))
	h := dial(t, s.socket)
	answered := make(chan error, 1)
	go func() {
		resp, err := h.Down(context.Background(), &hostv1.DownRequest{})
		if err == nil && resp.GetWorkersStopped() != 3 {
			err = fmt.Errorf("stopped %d", resp.GetWorkersStopped())
		}
		answered <- err
	}()
	<-entered
	s.stop()
	eventually(t, func() bool { // no new callers while the old one is served
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	close(leave)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if log := s.log.String(); strings.Contains(log, "calls cut") {
		t.Errorf("log: %s", log)
	}
}

// TestStopMute: a peer that connects and never says a word does not hold up the
// end for longer than it may take to begin.
func TestStopMute(t *testing.T) {
	s := serve(t, &backend{}, filepath.Join(privateDir(t), "s"))
	mute, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if _, err := dial(t, s.socket).ListWorkers(t.Context(), &hostv1.ListWorkersRequest{}); err != nil { // the mute one came first
		t.Fatal(err)
	}
	s.stop()
	awaitGone(t, s.socket)
}

// TestStopCuts: what runs on beyond the drain is cut, counted and told why; what
// does not heed it either is not waited for.
func TestStopCuts(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := serve(t, &backend{
		send: func(ctx context.Context, _ control.SendRequest) (control.SendResult, error) {
			entered <- struct{}{}
			<-ctx.Done()
			if cause := context.Cause(ctx); !errors.Is(cause, worker.ErrUnavailable) {
				t.Errorf("cause %v", cause)
			}
			return control.SendResult{}, ctx.Err()
		},
		down: func(context.Context, time.Duration) (int, error) {
			entered <- struct{}{}
			<-leave
			return 0, nil
		},
	}, filepath.Join(privateDir(t), "s"))
	h := dial(t, s.socket)
	heard, gone := make(chan error), make(chan error)
	for range 2 {
		go func() {
			_, err := h.Send(context.Background(), &hostv1.SendRequest{})
			heard <- err
		}()
		<-entered
	}
	go func() {
		_, err := h.Down(context.Background(), &hostv1.DownRequest{})
		gone <- err
	}()
	<-entered
	since := time.Now()
	s.stop()
	for range 2 {
		err := <-heard
		if reason, _ := told(err); reason != "unavailable" || !strings.Contains(err.Error(), "the host ends") {
			t.Errorf("who was cut heard %v", err)
		}
		if took := time.Since(since); took < drain {
			t.Errorf("cut after %s", took)
		}
	}
	if err := <-gone; status.Code(err) != codes.Unavailable {
		t.Errorf("who heeds nothing: %v", err)
	}
	close(leave)
	awaitGone(t, s.socket)
	if log := s.log.String(); !strings.Contains(log, "running calls cut: calls=3 after=300ms") {
		t.Errorf("log: %s", log)
	}
}

func TestStopBeforeServe(t *testing.T) {
	b := &backend{}
	s, err := control.New(control.Config{
		Socket: filepath.Join(privateDir(t), "s"), Forger: b, Workers: b, Sender: b, Clients: b, Host: b, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
}
