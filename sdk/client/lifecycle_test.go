package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/dals-host/dals-host/sdk/client"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// heard is the fake host's worker, whose state says what was asked.
func (h *fakeHost) heard(ref, format string, args ...any) (*hostv1.Worker, error) {
	if ref != "nora" {
		return nil, coded(codes.NotFound, "not_found", "run dals-host workers")
	}
	w := h.worker()
	w.State = fmt.Sprintf(format, args...)
	return w, nil
}

func (h *fakeHost) Stop(_ context.Context, r *hostv1.StopRequest) (*hostv1.StopResponse, error) {
	w, err := h.heard(r.GetWorker(), "stop %d", r.GetGraceMs())
	return &hostv1.StopResponse{Worker: w}, err
}

func (h *fakeHost) Start(_ context.Context, r *hostv1.StartRequest) (*hostv1.StartResponse, error) {
	w, err := h.heard(r.GetWorker(), "start %d", r.GetTimeoutMs())
	return &hostv1.StartResponse{Worker: w}, err
}

func (h *fakeHost) Restart(_ context.Context, r *hostv1.RestartRequest) (*hostv1.RestartResponse, error) {
	w, err := h.heard(r.GetWorker(), "restart %d %d", r.GetGraceMs(), r.GetTimeoutMs())
	return &hostv1.RestartResponse{Worker: w}, err
}

func (h *fakeHost) Upgrade(_ context.Context, r *hostv1.UpgradeRequest) (*hostv1.UpgradeResponse, error) {
	w, err := h.heard(r.GetWorker(), "upgrade %s %s %d %d", r.GetTypeVersion(), r.GetConfig(), r.GetGraceMs(), r.GetTimeoutMs())
	return &hostv1.UpgradeResponse{Worker: w, FromVersion: "0.9.0"}, err
}

func TestLifecycle(t *testing.T) {
	c := start(t, &fakeHost{key: newKey(t)})
	upgrade := func(config any) func(ref string) (client.Worker, error) {
		return func(ref string) (client.Worker, error) {
			done, err := c.Upgrade(t.Context(), client.UpgradeRequest{Worker: ref, Version: "1.1.0", Config: config, Grace: time.Second, Timeout: time.Minute})
			if err == nil && done.FromVersion != "0.9.0" {
				t.Errorf("from %q", done.FromVersion)
			}
			return done.Worker, err
		}
	}
	for want, call := range map[string]func(ref string) (client.Worker, error){
		"stop 1000":     func(ref string) (client.Worker, error) { return c.Stop(t.Context(), ref, time.Second) },
		"start 60000":   func(ref string) (client.Worker, error) { return c.Start(t.Context(), ref, time.Minute) },
		"restart 1 0":   func(ref string) (client.Worker, error) { return c.Restart(t.Context(), ref, time.Microsecond, 0) },
		"upgrade 1.1.0": upgrade(nil),
		`upgrade 1.1.0 {"n":1} 1000 60000`: upgrade(struct {
			N int `json:"n"`
		}{1}),
	} {
		if w, err := call("nora"); err != nil || !strings.HasPrefix(w.State, want) || w.WorkerSerial != serial {
			t.Errorf("%s: %+v, %v", want, w, err)
		}
		_, err := call("nobody")
		verb, _, _ := strings.Cut(want, " ")
		if refused, ok := errors.AsType[*client.Error](err); !ok || refused.Code != client.CodeNotFound || refused.Hint == "" || !strings.HasPrefix(err.Error(), verb+" nobody: ") {
			t.Errorf("%s of nobody: %v", want, err)
		}
	}
	if _, err := upgrade(make(chan int))("nora"); err == nil || !strings.Contains(err.Error(), "encode config") {
		t.Errorf("a config that is no JSON: %v", err)
	}
}
