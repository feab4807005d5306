package control_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// lifecycle answers with what it was asked for.
type lifecycle struct{}

func said(format string, args ...any) worker.Worker {
	return worker.Worker{Name: fmt.Sprintf(format, args...), State: worker.StateLive}
}

func answer(ref string, w worker.Worker) (worker.Worker, error) {
	if ref == "nobody" {
		return worker.Worker{}, worker.Hint(fmt.Errorf("worker %s: %w", ref, worker.ErrNotFound), "look")
	}
	return w, nil
}

func (lifecycle) Stop(_ context.Context, ref string, grace time.Duration) (worker.Worker, error) {
	return answer(ref, said("%s %s", ref, grace))
}

func (lifecycle) Start(_ context.Context, ref string, timeout time.Duration) (control.WorkerView, error) {
	w, err := answer(ref, said("%s %s", ref, timeout))
	return control.WorkerView{Worker: w, VaultIntegrity: true}, err
}

func (lifecycle) Restart(_ context.Context, ref string, grace, timeout time.Duration) (control.WorkerView, error) {
	w, err := answer(ref, said("%s %s %s", ref, grace, timeout))
	return control.WorkerView{Worker: w, VaultIntegrity: true}, err
}

func (lifecycle) Upgrade(_ context.Context, r control.UpgradeRequest) (control.Upgraded, error) {
	w, err := answer(r.Ref, said("%s %s %s %s %s", r.Ref, r.Version, r.Config, r.Grace, r.Timeout))
	return control.Upgraded{Worker: control.WorkerView{Worker: w, VaultIntegrity: true}, FromVersion: "1.0.0"}, err
}

func TestLifecycle(t *testing.T) {
	socket := filepath.Join(privateDir(t), "host.sock")
	s, err := control.New(control.Config{Socket: socket, Lifecycle: lifecycle{}, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	host := dial(t, socket)
	calls := map[string]func(ref string) (*hostv1.Worker, error){
		"nora 1s": func(ref string) (*hostv1.Worker, error) {
			r, err := host.Stop(t.Context(), &hostv1.StopRequest{Worker: ref, GraceMs: 1000})
			return r.GetWorker(), err
		},
		"nora 2s": func(ref string) (*hostv1.Worker, error) {
			r, err := host.Start(t.Context(), &hostv1.StartRequest{Worker: ref, TimeoutMs: 2000})
			return r.GetWorker(), err
		},
		"nora 1s 2s": func(ref string) (*hostv1.Worker, error) {
			r, err := host.Restart(t.Context(), &hostv1.RestartRequest{Worker: ref, GraceMs: 1000, TimeoutMs: 2000})
			return r.GetWorker(), err
		},
		"nora 1.1.0 {} 1s 2s": func(ref string) (*hostv1.Worker, error) {
			r, err := host.Upgrade(t.Context(), &hostv1.UpgradeRequest{Worker: ref, TypeVersion: "1.1.0", Config: []byte("{}"), GraceMs: 1000, TimeoutMs: 2000})
			if err == nil && r.GetFromVersion() != "1.0.0" {
				t.Errorf("from %q", r.GetFromVersion())
			}
			return r.GetWorker(), err
		},
	}
	for want, call := range calls {
		if w, err := call("nora"); err != nil || w.GetWorkerName() != want || w.GetState() != "live" {
			t.Errorf("%q: %v, %v", want, w, err)
		}
		if _, err := call("nobody"); status.Code(err) != codes.NotFound {
			t.Errorf("%q of nobody: %v", want, err)
		}
	}
}
