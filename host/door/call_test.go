package door

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// board answers calls, and remembers what it was asked.
type board struct {
	asked []CallRequest
	err   error
}

func (b *board) Pick(context.Context, worker.Worker, string) (worker.Serial, error) {
	return nora, b.err
}

func (b *board) Call(_ context.Context, r CallRequest) (*hostv1.SendResponse, error) {
	b.asked = append(b.asked, r)
	return &hostv1.SendResponse{WorkerSerial: "somebody"}, b.err
}

// put puts one request to the door and says what came back.
func (r *rig) put(method, path string, header map[string]string, body []byte) (status int, code, text string) {
	r.t.Helper()
	c := r.knock()
	request, err := http.NewRequest(method, "http://host"+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	if err := request.Write(c); err != nil {
		r.t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		r.t.Fatal(err)
	}
	lines, text, _ := strings.Cut(string(answer), "\r\n\r\n")
	if _, err := fmt.Sscanf(lines, "HTTP/1.1 %d", &status); err != nil {
		r.t.Fatalf("%q", answer)
	}
	for line := range strings.Lines(lines) {
		if value, ok := strings.CutPrefix(line, wire.DoorCode+": "); ok {
			code = strings.TrimSpace(value)
		}
	}
	return status, code, text
}

// TestCalls: a door carries what is a call, as who its worker is.
func TestCalls(t *testing.T) {
	t.Parallel()
	r, b := newRig(t), &board{}
	r.doors.Exchange = b
	r.open(r.worker("call:template"))
	if status, _, text := r.put("GET", "/workers/template", nil, nil); status != 200 || text != string(nora) {
		t.Errorf("pick: %d %q", status, text)
	}
	if status, code, _ := r.put("GET", "/workers/ledger", nil, nil); status != 403 || code != CallNotGranted {
		t.Errorf("pick another type: %d %s", status, code)
	}
	body, err := proto.Marshal(&workerv1.Envelope{Header: []byte("h")})
	if err != nil {
		t.Fatal(err)
	}
	task := map[string]string{wire.DoorTask: "some-id/3", wire.DoorTimeout: "1500"}
	status, _, text := r.put("POST", "/calls", task, body)
	reply := &hostv1.SendResponse{}
	if err := proto.Unmarshal([]byte(text), reply); err != nil || status != 200 || reply.GetWorkerSerial() != "somebody" {
		t.Errorf("call: %d %q, %v", status, text, err)
	}
	if len(b.asked) != 1 || b.asked[0].Caller.Serial != nora || b.asked[0].EnvelopeID != "some-id" || b.asked[0].Attempt != 3 ||
		b.asked[0].Timeout.Milliseconds() != 1500 || string(b.asked[0].Envelope.GetHeader()) != "h" {
		t.Errorf("asked %+v", b.asked)
	}
	for name, bad := range map[string]map[string]string{
		"no task": {}, "no attempt": {wire.DoorTask: "id"}, "no id": {wire.DoorTask: "/1"}, "a long id": {wire.DoorTask: strings.Repeat("x", 65) + "/1"},
		"a long attempt": {wire.DoorTask: "id/4294967296"}, "a strange timeout": {wire.DoorTask: "id/1", wire.DoorTimeout: "-1"},
	} {
		if status, code, _ := r.put("POST", "/calls", bad, body); status != 403 || code != CallMalformed {
			t.Errorf("%s: %d %s", name, status, code)
		}
	}
	if status, code, _ := r.put("POST", "/calls", task, []byte("\xff")); status != 403 || code != CallMalformed {
		t.Errorf("no envelope: %d %s", status, code)
	}
	if got := r.doors.Traffic(nora).Refused; got != 8 {
		t.Errorf("%d refused", got)
	}
	r.doors.summarize(t.Context())
	said := map[string]uint64{}
	for _, e := range r.recorded(record.RefusedSummary) {
		if e.Refusal.Peer != "worker "+string(nora) || e.Refusal.Reason == "" {
			t.Errorf("%+v", e.Refusal)
		}
		said[e.Refusal.Code] += e.Refusal.Count
	}
	if said[CallNotGranted] != 1 || said[CallMalformed] != 7 || len(said) != 2 {
		t.Errorf("recorded %v", said)
	}
}

// TestRefusedCalls: the reason and the code reach who called.
func TestRefusedCalls(t *testing.T) {
	t.Parallel()
	r, b := newRig(t), &board{}
	r.doors.Exchange = b
	r.open(r.worker("call:template"))
	task := map[string]string{wire.DoorTask: "some-id/3"}
	for code, err := range map[string]error{
		CallNotGranted:      worker.Refuse(CallNotGranted, "by the gate"), // which has recorded it
		"call_too_deep":     worker.Refuse("call_too_deep", "too deep"),
		"deadline_exceeded": fmt.Errorf("no answer: %w", worker.ErrDeadline),
		"unavailable":       fmt.Errorf("no space: %w", worker.ErrUnavailable),
	} {
		b.err = err
		if _, got, text := r.put("POST", "/calls", task, nil); got != code || text == "" {
			t.Errorf("%s: %q %q", code, got, text)
		}
	}
	r.doors.summarize(t.Context())
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.entries) != 0 {
		t.Errorf("recorded again: %+v", r.entries)
	}
}

// TestNoCalls: who may connect may not call.
func TestNoCalls(t *testing.T) {
	t.Parallel()
	r, b := newRig(t, "egress:call.template:443"), &board{}
	r.doors.Exchange = b
	if _, code, _ := r.put("GET", "/workers/template", nil, nil); code != CallNotGranted {
		t.Errorf("pick: %q", code)
	}
	if _, code, _ := r.put("POST", "/calls", map[string]string{wire.DoorTask: "id/1"}, nil); code != CallNotGranted || len(b.asked) != 0 {
		t.Errorf("call: %q, %+v", code, b.asked)
	}
}

func FuzzReadCall(f *testing.F) {
	f.Add("0192-x/1", "1000", []byte{})
	f.Add("/", "-1", []byte("\xff\xff"))
	f.Add("a/0/1", "", []byte{10, 1, 'h'})
	f.Fuzz(func(t *testing.T, task, timeout string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, wire.CallPath, bytes.NewReader(body))
		r.Header.Set(wire.DoorTask, task)
		r.Header.Set(wire.DoorTimeout, timeout)
		c, err := readCall(httptest.NewRecorder(), r)
		if err != nil {
			return
		}
		if c.EnvelopeID == "" || c.Timeout < 0 || c.Envelope == nil {
			t.Fatalf("%+v", c)
		}
		_, _ = envelope.Parse(c.Envelope)
	})
}
