package control_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestSendPassesLargePayloads(t *testing.T) {
	var got control.SendRequest
	h := host(t, &backend{send: func(_ context.Context, r control.SendRequest) (control.SendResult, error) {
		got = r
		return control.SendResult{
			Result: &workerv1.Envelope{Payload: []byte("r")}, Serial: "s", PublicKey: []byte("k"),
			AdmittedIndex: 1, ResultIndex: 2, Duration: 3 * time.Millisecond,
		}, nil
	}})
	payload := make([]byte, 4<<20+1) // one more than the gate lets through
	rand.Read(payload)
	resp, err := h.Send(t.Context(), &hostv1.SendRequest{Envelope: &workerv1.Envelope{Payload: payload}, TimeoutMs: 1500})
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("uid=%d pid=%d", os.Getuid(), os.Getpid()); got.Peer != want {
		t.Errorf("peer %q, want %q", got.Peer, want)
	}
	if !bytes.Equal(got.Envelope.GetPayload(), payload) || got.Timeout != 1500*time.Millisecond {
		t.Errorf("the backend got %d bytes, timeout %s", len(got.Envelope.GetPayload()), got.Timeout)
	}
	if resp.GetWorkerSerial() != "s" || string(resp.GetPublicKey()) != "k" || resp.GetAdmittedIndex() != 1 || resp.GetResultIndex() != 2 ||
		resp.GetDurationMs() != 3 || string(resp.GetResult().GetPayload()) != "r" {
		t.Errorf("response %v", resp)
	}
	_, err = h.Send(t.Context(), &hostv1.SendRequest{Envelope: &workerv1.Envelope{Payload: make([]byte, control.MaxMessage)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit: %v", err)
	}
}

func TestForge(t *testing.T) {
	made := control.WorkerView{
		Worker: worker.Worker{
			Serial: "DMN-TP-1-0000abcd-00001", Name: "nora", Type: "template", TypeVersion: "1.0.0", ClassCode: "A1",
			Model: "DMN-TP-1", LedgerCode: "A1-000001", Port: 20001, State: worker.StateLive, Launcher: "process",
			PublicKey: []byte{1, 2, 3}, Glyph: "g", ManifestSHA256: "m", ImageDigest: "i", Restarts: 4,
			CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.FixedZone("", 3600)),
		},
		VaultIntegrity: true, LastHeartbeat: time.Unix(10, 0), HeartbeatInterval: 5 * time.Second, MissedHeartbeats: 1,
	}
	var asked control.ForgeRequest
	h := host(t, &backend{
		forge: func(_ context.Context, r control.ForgeRequest) (control.ForgeResult, error) {
			asked = r
			return control.ForgeResult{Worker: made, Existed: true}, nil
		},
		plan: func(context.Context, control.ForgeRequest) (control.Plan, error) {
			return control.Plan{
				Worker: made, Steps: []control.PlanStep{{Step: "s", Makes: "m"}}, Hash: "h",
				Files: []control.PlanFile{{Path: "f", Mode: "0440", Size: 7, SHA256: "ab"}}, Manifest: []byte("{}"),
			}, nil
		},
	})
	request := &hostv1.ForgeRequest{WorkerName: "nora", WorkerType: "template", ClassCode: "A1", TypeVersion: "1.0.0", Config: []byte("{}"), TimeoutMs: 2000, PlanHash: "p"}
	resp, err := h.Forge(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if asked.Name != "nora" || asked.Type != "template" || asked.ClassCode != "A1" || asked.Version != "1.0.0" || string(asked.Config) != "{}" || asked.Timeout != 2*time.Second || asked.PlanHash != "p" {
		t.Errorf("the backend was asked for %+v", asked)
	}
	w := resp.GetWorker()
	if !resp.GetExisted() || len(resp.GetPlan()) != 0 || w.GetCreatedAt() != "2026-01-02T02:04:05.678Z" || w.GetRetiredAt() != "" ||
		w.GetPublicKey() != "AQID" || w.GetHeartbeat().GetLast() != "1970-01-01T00:00:10Z" || w.GetHeartbeat().GetIntervalS() != 5 {
		t.Errorf("response %v", resp)
	}
	request.DryRun = true
	resp, err = h.Forge(t.Context(), request)
	if f := resp.GetFiles(); len(f) != 1 || f[0].GetPath() != "f" || f[0].GetMode() != "0440" || f[0].GetSize() != 7 || f[0].GetSha256() != "ab" || string(resp.GetManifest()) != "{}" {
		t.Errorf("files %v, manifest %s", f, resp.GetManifest())
	}
	if err != nil || resp.GetExisted() || resp.GetPlanHash() != "h" || len(resp.GetPlan()) != 1 || resp.GetWorker().GetWorkerName() != "nora" {
		t.Errorf("dry run: %v, %v", resp, err)
	}
}

func TestOtherCalls(t *testing.T) {
	h := host(t, &backend{
		worker: func(ref string) (control.WorkerDetail, error) {
			return control.WorkerDetail{
				WorkerView: control.WorkerView{Worker: worker.Worker{Name: ref}}, Identity: []byte("i"), Manifest: []byte("m"),
				Metrics: control.Metrics{StartedAt: time.Unix(1, 0), InFlight: 2, Done: 3, Failed: 4, RSSBytes: 5},
				Tasks:   []*workerv1.TaskKind{{Kind: "template.echo"}},
			}, nil
		},
		down: func(_ context.Context, timeout time.Duration) (int, error) { return int(timeout.Milliseconds()), nil },
	})
	ctx := t.Context()
	types, err := h.ListTypes(ctx, &hostv1.ListTypesRequest{})
	if err != nil || len(types.GetTypes()) != 1 || types.GetTypes()[0].GetFamily() != "TP" || !types.GetTypes()[0].GetDraining() || types.GetTypes()[0].GetWorkers() != 2 {
		t.Errorf("types %v, %v", types, err)
	}
	plugins, err := h.ListPlugins(ctx, &hostv1.ListPluginsRequest{})
	if err != nil || len(plugins.GetPlugins()) != 1 || plugins.GetPlugins()[0].GetFix() != "f" {
		t.Errorf("plugins %v, %v", plugins, err)
	}
	workers, err := h.ListWorkers(ctx, &hostv1.ListWorkersRequest{WorkerType: "t", State: "live", IncludeRetired: true})
	if err != nil || len(workers.GetWorkers()) != 1 || workers.GetWorkers()[0].GetWorkerType() != "t" || workers.GetWorkers()[0].GetState() != "live" || !workers.GetWorkers()[0].GetVaultIntegrity() {
		t.Errorf("workers %v, %v", workers, err)
	}
	_, err = h.ListWorkers(ctx, &hostv1.ListWorkersRequest{State: "xyz"})
	if code, hint := told(err); code != "invalid" || !strings.Contains(hint, "live, restarting") {
		t.Errorf("workers of state xyz: %v, hint %q", err, hint)
	}
	one, err := h.GetWorker(ctx, &hostv1.GetWorkerRequest{Worker: "nora"})
	if err != nil || one.GetWorker().GetWorkerName() != "nora" || string(one.GetIdentity()) != "i" || string(one.GetManifest()) != "m" {
		t.Errorf("worker %v, %v", one, err)
	}
	m := one.GetMetrics()
	if m.GetStartedAt() != "1970-01-01T00:00:01Z" || m.GetTasksInFlight() != 2 || m.GetTasksDone() != 3 || m.GetTasksFailed() != 4 || m.GetRssBytes() != 5 ||
		len(one.GetTasks()) != 1 || one.GetTasks()[0].GetKind() != "template.echo" {
		t.Errorf("metrics %v, tasks %v", m, one.GetTasks())
	}
	retired, err := h.Retire(ctx, &hostv1.RetireRequest{Worker: "nora", GraceMs: 1000})
	if err != nil || retired.GetWorker().GetState() != "retired" || retired.GetWorker().GetStateReason() != "1s" {
		t.Errorf("retire %v, %v", retired, err)
	}
	added, err := h.AddClient(ctx, &hostv1.AddClientRequest{Name: "ci", PublicKey: make([]byte, 32)})
	if err != nil || added.GetClient().GetName() != "ci" || added.GetClient().GetId() != "key:32" {
		t.Errorf("add client %v, %v", added, err)
	}
	clients, err := h.ListClients(ctx, &hostv1.ListClientsRequest{})
	if err != nil || len(clients.GetClients()) != 2 || clients.GetClients()[0].GetRevokedAt() != "" || clients.GetClients()[1].GetRevokedAt() != "1970-01-01T00:00:01Z" {
		t.Errorf("clients %v, %v", clients, err)
	}
	revoked, err := h.RevokeClient(ctx, &hostv1.RevokeClientRequest{Name: "ci"})
	if err != nil || revoked.GetClient().GetRevokedAt() == "" {
		t.Errorf("revoke %v, %v", revoked, err)
	}
	down, err := h.Down(ctx, &hostv1.DownRequest{TimeoutMs: 7})
	if err != nil || down.GetWorkersStopped() != 7 {
		t.Errorf("down %v, %v", down, err)
	}
}
