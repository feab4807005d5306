package workertest

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/dals-host/dals-host/sdk"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Conformance checks what a host relies on, whatever the type: that it describes
// itself, that its workers answer, refuse what they must refuse by its name, and
// end when asked. It runs no task. binary is the plugin binary (os.Args[0] where
// TestMain calls Main); newType is the type that it should serve. Options
// configure the worker.
func Conformance(t *testing.T, binary string, newType func() sdk.Type, options ...Option) {
	t.Run("descriptor", func(t *testing.T) { conformDescriptor(t, Probe(t, binary), newType) })
	w := StartBinary(t, binary, options...)
	w.subtest(t, "heartbeat", func(t *testing.T) { conformHeartbeat(t, w) })
	w.subtest(t, "refusals", func(t *testing.T) { conformRefusals(t, w, newType().Tasks) })
	w.subtest(t, "end", func(t *testing.T) { conformEnd(t, w) })
}

// subtest runs f, which is not to be parallel, with w's own failures its.
func (w *Worker) subtest(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		outer := w.t
		defer func() { w.t = outer }()
		w.t = t
		f(t)
	})
}

func conformDescriptor(t *testing.T, probed *workerv1.TypeDescriptor, newType func() sdk.Type) {
	want, err := sdk.Describe(newType())
	must(t, err)
	if diff := cmp.Diff(want, probed, protocmp.Transform()); diff != "" {
		t.Errorf("the binary describes another type than its tests (-want +got):\n%s", diff)
	}
	schemas := map[string][]byte{"config": probed.GetConfigSchema()}
	for _, k := range probed.GetTasks() {
		schemas[k.GetKind()+" input"] = k.GetInputSchema()
		schemas[k.GetKind()+" output"] = k.GetOutputSchema()
	}
	for what, text := range schemas {
		s := &jsonschema.Schema{}
		if err := json.Unmarshal(text, s); err != nil {
			t.Errorf("schema of %s: %v", what, err)
			continue
		}
		if _, err := s.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true}); err != nil {
			t.Errorf("schema of %s: %v", what, err)
		}
	}
}

func conformHeartbeat(t *testing.T, w *Worker) {
	stream, err := w.Client().Heartbeat(t.Context())
	must(t, err)
	first, err := stream.Recv()
	must(t, err)
	if first.GetSerial() != w.Identity.WorkerSerial || !first.GetVaultIntegrity() {
		t.Errorf("first heartbeat: %v", first)
	}
	// No interval passes within the test, so the next one answers the ping.
	must(t, stream.Send(&workerv1.HeartbeatRequest{IntervalMs: 60_000, Ping: 7}))
	for {
		h, err := stream.Recv()
		must(t, err)
		if h.GetPong() == 7 {
			return
		}
	}
}

func conformRefusals(t *testing.T, w *Worker, tasks []sdk.Task) {
	kind := tasks[0].Kind
	noJSON := json.RawMessage("no JSON")
	other := func(h *workerv1.Header) { h.Recipient = w.Identity.ModelNumber + "-0000abcd-00002" }
	stale := func(s *workerv1.Stamp) {
		s.AdmittedAtUnixMs = time.Now().Add(-time.Hour).UnixMilli()
		s.DeadlineUnixMs = s.AdmittedAtUnixMs + 1
	}
	tampered := w.Envelope(kind, noJSON)
	tampered.Payload = append(slices.Clone(tampered.Payload), ' ')
	unsigned := w.Envelope(kind, noJSON)
	unsigned.Proof = proto.CloneOf(w.Envelope(kind, noJSON).Proof)
	for name, c := range map[string]struct {
		delivery *workerv1.Delivery
		code     string
	}{
		"tampered payload": {w.Stamp(tampered), "bad_proof"},
		"other's proof":    {w.Stamp(unsigned), "bad_proof"},
		"foreign stamp":    {w.StampAs(newKey(t), w.Envelope(kind, noJSON)), "bad_stamp"},
		"for another":      {w.Stamp(w.Envelope(kind, noJSON, other)), "misaddressed"},
		"out of date":      {w.Stamp(w.Envelope(kind, noJSON), stale), "not_yet_valid"},
		"unknown kind":     {w.Stamp(w.Envelope(w.Identity.WorkerType+".not_a_kind_of_any_worker", noJSON)), "kind_unknown"},
	} {
		conformRefusal(t, w, name, c.delivery, c.code)
	}
	for _, task := range tasks {
		conformRefusal(t, w, task.Kind+" without JSON", w.Stamp(w.Envelope(task.Kind, noJSON)), "schema_mismatch")
	}
	if h := w.Heartbeat(t.Context()); h.GetTasksDone() != 0 || h.GetTasksFailed() != 0 {
		t.Errorf("a refused task was run: %v", h)
	}
}

func conformRefusal(t *testing.T, w *Worker, name string, d *workerv1.Delivery, code string) {
	t.Helper()
	a, err := w.Deliver(t.Context(), d)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if a.Status != workerv1.ResultStatus_RESULT_STATUS_REFUSED || a.Code != code {
		t.Errorf("%s: %s, want refused as %s", name, a, code)
	}
}

func conformEnd(t *testing.T, w *Worker) {
	started := time.Now()
	if err := w.Stop(); err != nil {
		t.Errorf("end: %v", err)
	}
	if took := time.Since(started); took > 10*time.Second { // then a host kills it
		t.Errorf("end: took %s", took)
	}
}
