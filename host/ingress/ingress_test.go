package ingress

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

const nora = worker.Serial("DMN-TP-1-deadbeef-00001")

// world is a host with one worker that answers as a test says.
type world struct {
	t       *testing.T
	key     ed25519.PrivateKey
	grants  []string
	payload []byte
	status  workerv1.ResultStatus
	err     error
	asked   wire.IngressRequest
	granted string
}

func newWorld(t *testing.T) (*world, http.Handler) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, key: key, grants: []string{"egress:a.org:443", "ingress:hooks", "ingress:hooks/deep"}, status: workerv1.ResultStatus_RESULT_STATUS_OK}
	g := New(Config{Key: key, Workers: w, Sender: w, Logger: hclog.NewNullLogger()})
	return w, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { g.Serve(nora, rw, r) })
}

func (w *world) Worker(context.Context, worker.Serial) (worker.Worker, error) {
	return worker.Worker{Serial: nora, Type: "template", Grants: w.grants}, nil
}

func (w *world) Ingress(_ context.Context, _, granted string, env *workerv1.Envelope, _ time.Duration) (*workerv1.Envelope, error) {
	h, err := envelope.Parse(env)
	if err == nil {
		err = envelope.Verify(env, h, w.key.Public().(ed25519.PublicKey))
	}
	if err != nil || h.Kind != "template.ingress" || h.Recipient != string(nora) {
		w.t.Errorf("sent %v, %v", h, err)
	}
	w.granted = granted
	if err := json.Unmarshal(env.GetPayload(), &w.asked); err != nil {
		w.t.Error(err)
	}
	if w.err != nil {
		return nil, w.err
	}
	return envelope.New(w.key, string(nora), &workerv1.Header{
		Recipient: h.Sender, Kind: h.Kind, InReplyTo: h.Id, Attempt: 1, Status: w.status,
	}, w.payload)
}

// TestAnswers: what of a worker's answers is served, and as what.
func TestAnswers(t *testing.T) {
	t.Parallel()
	w, h := newWorld(t)
	server := httptest.NewServer(h)
	defer server.Close()
	for _, c := range []struct {
		payload string
		failed  workerv1.ResultStatus
		err     error
		status  int
		kind    string
		body    string
	}{
		{`{"status":200,"json":false,"body":"PGI+"}`, 0, nil, 200, "application/octet-stream", "<b>"},
		{`{"status":404,"json":true,"body":"e30="}`, 0, nil, 404, "application/json", "{}"},
		{`{"status":204,"json":false,"body":"PGI+"}`, 0, nil, 204, "", ""},
		{`{"status":301,"json":false,"body":""}`, 0, nil, 502, "", ""},
		{`{"status":101,"json":false,"body":""}`, 0, nil, 502, "", ""},
		{`{"status":999,"json":false,"body":""}`, 0, nil, 502, "", ""},
		{`{"json":false,"body":""}`, 0, nil, 502, "", ""},
		{`{"status":200,"json":true,"body":"ew=="}`, 0, nil, 502, "", ""},
		{`{"status":200,"json":false,"body":"%"}`, 0, nil, 502, "", ""},
		{`[]`, 0, nil, 502, "", ""},
		{`{"code":"x","error":"a secret"}`, workerv1.ResultStatus_RESULT_STATUS_FAILED, nil, 502, "", ""},
		{``, 0, worker.Refuse("worker_unavailable", "a secret"), 503, "", "worker_unavailable\n"},
		{``, 0, fmt.Errorf("a secret: %w", worker.ErrDeadline), 504, "", ""},
		{``, 0, fmt.Errorf("a secret: %w", worker.ErrUnavailable), 503, "", ""},
		{``, 0, errors.New("a secret"), 502, "", ""},
	} {
		w.payload, w.err, w.status = []byte(c.payload), c.err, workerv1.ResultStatus_RESULT_STATUS_OK
		if c.failed != 0 {
			w.status = c.failed
		}
		status, header, body := get(t, server.URL+"/in/hooks/deep/er?a=b")
		if status != c.status || c.kind != "" && header.Get("Content-Type") != c.kind || c.body != "" && body != c.body || strings.Contains(body, "secret") {
			t.Errorf("%s, %v: %d %v %q", c.payload, c.err, status, header, body)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || strings.Contains(header.Get("Content-Type"), "html") || header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: %v", c.payload, header)
		}
	}
	if w.granted != "ingress:hooks/deep" || w.asked.Path != "hooks/deep/er" || w.asked.Query != "a=b" || w.asked.Method != "GET" || w.asked.Peer == "" {
		t.Errorf("asked %+v under %s", w.asked, w.granted)
	}
}

// client keeps no connection: a test server that is closed ends all that the default one
// keeps, also while another test is about to use it.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func get(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func TestMatch(t *testing.T) {
	t.Parallel()
	grants := []string{"call:hooks", "egress:hooks:80", "ingress:a.b/c", "ingress:hooks", "ingress:hooks/deep"}
	for path, want := range map[string]string{
		"/in/hooks": "ingress:hooks", "/in/hooks/": "ingress:hooks", "/in/hooks/x": "ingress:hooks", "/in/hooks/deep": "ingress:hooks/deep",
		"/in/hooks/deeper": "ingress:hooks", "/in/a.b/c/d": "ingress:a.b/c", "/in/a.b": "", "/in/": "", "/in": "", "/hooks": "", "/in/hooks//x": "",
		"/in/hooks/../hooks": "", "/in/./hooks": "", "/in/hooksy": "", "/in/Hooks": "", "/in//hooks": "",
	} {
		if got := match(grants, path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestRate: one worker's requests are bounded, and another's are its own.
func TestRate(t *testing.T) {
	t.Parallel()
	w, h := newWorld(t)
	w.payload = []byte(`{"status":200,"json":false,"body":""}`)
	server := httptest.NewServer(h)
	defer server.Close()
	limited := 0
	for range 2 * inBurst {
		if status, _, _ := get(t, server.URL+"/in/hooks"); status == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited == 0 {
		t.Error("none was refused")
	}
}

// TestOtherSites: a page in a browser of this machine has nothing done, not even by
// a GET.
func TestOtherSites(t *testing.T) {
	t.Parallel()
	w, h := newWorld(t)
	w.payload = []byte(`{"status":200,"json":false,"body":""}`)
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "none": 200, "same-origin": 200, "": 200} {
		server := httptest.NewServer(h)
		r, err := http.NewRequest(http.MethodGet, server.URL+"/in/hooks", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		server.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: %d", site, resp.StatusCode)
		}
	}
}

// TestAtOnce: requests that wait for the worker leave the port room to answer.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	g := New(Config{})
	for range atOnce {
		if _, err := g.enter(nora); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.enter(nora); err == nil {
		t.Error("one more was taken")
	}
	if leave, err := g.enter("DMN-TP-1-deadbeef-00002"); err != nil {
		t.Error(err)
	} else {
		leave()
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"status":200,"json":true,"body":"e30="}`))
	f.Add([]byte(`{"status":1e2,"body":[]}`))
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		env, err := envelope.New(key, string(nora), &workerv1.Header{
			Recipient: string(nora), Kind: "template.ingress", InReplyTo: "01920000-0000-7000-8000-000000000000", Attempt: 1,
			Status: workerv1.ResultStatus_RESULT_STATUS_OK,
		}, payload)
		if err != nil {
			return
		}
		a, err := read(env)
		if err != nil {
			return
		}
		if a.Status < 200 || a.Status > 599 || a.Status/100 == 3 || a.JSON && a.Status != 204 && !json.Valid(a.Body) {
			t.Fatalf("%+v", a)
		}
	})
}
