package e2e

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/envelope"
)

// nowhere is a name that no resolver knows.
const nowhere = "nowhere.invalid"

// outpost is a real TLS server on this machine, and a wanderer that asks for it.
type outpost struct {
	address, url, ca string
}

// newOutpost starts the server, builds a wanderer that asks for it and for
// nowhere, and drops it into the host.
func newOutpost(t *testing.T, h *host) outpost {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from ", r.Host) }))
	t.Cleanup(server.Close)
	o := outpost{address: server.Listener.Addr().String(), url: server.URL}
	o.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	h.dropWanderer(o.grant(), "egress:"+nowhere+":443", "call:template", "call:wanderer", "ingress:hooks", "mount:/mnt/photos", "mount:/mnt/fixed", "mount:/mnt/inbox")
	return o
}

// dropWanderer builds the first wanderer, which asks for capabilities, and drops it
// into the host.
func (h *host) dropWanderer(asks ...string) {
	h.t.Helper()
	h.dropWandererOf("1.0.0", asks...)
}

func (h *host) dropWandererOf(version string, asks ...string) {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "dals-worker-wanderer")
	build := exec.Command("go", "build", "-o", file, "-ldflags", "-X 'main.asks="+strings.Join(asks, " ")+"' -X main.version="+version, "github.com/dals-host/dals-host/internal/e2e/wanderer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		h.t.Fatalf("%v\n%s", err, text)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "plugins", "dals-worker-wanderer-"+version), data, 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.eventually("wanderer "+version+" registered", func() error {
		types, err := h.client.Types(h.t.Context())
		if err == nil && !slices.ContainsFunc(types, func(t client.Type) bool { return t.Name == "wanderer" && t.Version == version }) {
			err = errors.New("it is not")
		}
		return err
	})
}

func (o outpost) grant() string { return "egress:" + o.address }

func (o outpost) fetch(bySDK bool) map[string]any {
	return map[string]any{"url": o.url, "ca": o.ca, "sdk": bySDK}
}

func (h *host) forgeGranted(name string, grants ...string) client.Worker {
	h.t.Helper()
	made, err := h.client.Forge(h.t.Context(), client.ForgeRequest{Name: name, Type: "wanderer", ClassCode: "A1", Grants: grants})
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.log)
	}
	return made.Worker
}

// entriesOf are the entries of some kinds about one worker.
func (h *host) entriesOf(serial string, kinds ...record.Kind) (found []record.Entry) {
	h.t.Helper()
	for _, e := range h.entries() {
		if e.Worker != nil && string(e.Worker.Serial) == serial && slices.Contains(kinds, e.Kind) {
			found = append(found, e)
		}
	}
	return found
}

// TestEgress: a worker reaches over TLS what it was granted, and each connection
// is in the record; also by the next host.
func TestEgress(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		o := newOutpost(t, h)
		w := h.forgeGranted("far", o.grant())
		if !slices.Equal(w.Grants, []string{o.grant()}) || !slices.Equal(w.NotGranted, []string{"egress:" + nowhere + ":443", "call:template", "call:wanderer", "ingress:hooks", "mount:/mnt/photos", "mount:/mnt/fixed", "mount:/mnt/inbox"}) {
			t.Errorf("granted %q, not granted %q", w.Grants, w.NotGranted)
		}
		said := h.mustSend("far", "wanderer.grants", struct{}{})
		if !strings.Contains(string(said.Result), o.grant()) {
			t.Errorf("it says that it has %s", said.Result)
		}
		ways := []bool{true}
		if h.launcher == "containerd" {
			ways = append(ways, false) // any library, as it is
		}
		for range 2 {
			for _, bySDK := range ways {
				said := h.mustSend("far", "wanderer.fetch", o.fetch(bySDK))
				if !strings.Contains(string(said.Result), "hello from "+o.address) {
					t.Errorf("fetched %s", said.Result)
				}
			}
			h.kill()
			h.start()
			h.eventually("worker found again", func() error {
				if got := h.worker("far"); got.Heartbeat.Last.IsZero() || got.Restarts > 0 {
					return fmt.Errorf("%+v", got)
				}
				return nil
			})
		}
		opened := h.entriesOf(w.WorkerSerial, record.EgressOpened)
		if len(opened) != 2*len(ways) || opened[0].Egress.Address != o.address {
			t.Errorf("%d opened: %+v", len(opened), opened)
		}
		h.checkNoWayOut("far", o)
		h.checkTraffic(o)
		forged := h.entriesOf(w.WorkerSerial, record.Forge)
		if len(forged) != 1 || !slices.Equal(forged[0].Worker.Grants, []string{o.grant()}) {
			t.Errorf("%+v", forged)
		}
	})
}

// checkTraffic: what goes through is counted.
func (h *host) checkTraffic(o outpost) {
	h.t.Helper()
	h.mustSend("far", "wanderer.fetch", o.fetch(true))
	h.eventually("bytes counted", func() error {
		w, err := h.client.Worker(h.t.Context(), "far")
		if err == nil && (w.Traffic == nil || w.Traffic.Connections != 1 || w.Traffic.Sent == 0 || w.Traffic.Received == 0 || w.Traffic.Open != 0) {
			err = fmt.Errorf("%+v", w.Traffic)
		}
		return err
	})
	text, _, _ := h.run("worker", "far")
	if !strings.Contains(text, "traffic") || !strings.Contains(text, o.grant()) {
		h.t.Errorf("worker says\n%s", text)
	}
}

// checkNoWayOut: in a container there is no way but those that were granted.
func (h *host) checkNoWayOut(name string, o outpost) {
	h.t.Helper()
	if h.launcher != "containerd" {
		return // nothing is isolated
	}
	_, port, _ := net.SplitHostPort(o.address)
	aims := []string{"1.1.1.1:443", "[2606:4700::1111]:443", "169.254.169.254:80", "127.0.0.2:" + port, "127.0.0.53:53", "10.0.0.1:" + port}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			aims = append(aims, net.JoinHostPort(ip.IP.String(), port))
		}
	}
	said := h.mustSend(name, "wanderer.escape", map[string]any{"list": aims})
	if !strings.Contains(string(said.Result), `"list":[]`) {
		h.t.Errorf("%s got out: %s", name, said.Result)
	}
}

// TestNoGrant: what was not granted leads nowhere, whatever its type asks for.
func TestNoGrant(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		o := newOutpost(t, h)
		h.forgeGranted("home")
		if _, err := h.send("home", "wanderer.fetch", o.fetch(true)); err == nil || !strings.Contains(err.Error(), "not_granted") {
			t.Errorf("without a grant: %v", err)
		}
		w := h.forgeGranted("other", "egress:"+nowhere+":443")
		if _, err := h.send("other", "wanderer.fetch", o.fetch(true)); err == nil || !strings.Contains(err.Error(), "not_granted") {
			t.Errorf("with another: %v", err)
		}
		if h.launcher == "containerd" {
			for _, name := range []string{"home", "other"} {
				if _, err := h.send(name, "wanderer.fetch", o.fetch(false)); err == nil {
					t.Errorf("%s reached the server", name)
				}
				h.checkNoWayOut(name, o)
			}
			h.checkNames()
		}
		if _, err := h.client.Retire(t.Context(), "other", 0); err != nil {
			t.Fatal(err)
		}
		var codes []string
		for _, e := range h.entriesOf(w.WorkerSerial, record.EgressRefused) {
			codes = append(codes, e.Refusal.Code)
		}
		if !slices.Contains(codes, "egress_not_granted") || h.launcher == "containerd" && !slices.Contains(codes, "egress_unresolved") {
			t.Errorf("recorded %q", codes)
		}
		if opened := h.entriesOf(w.WorkerSerial, record.EgressOpened); len(opened) != 0 {
			t.Errorf("opened %+v", opened)
		}
	})
}

// checkNames: the worker other has a name of its own, on a port below 1024, and
// no other name is known to it.
func (h *host) checkNames() {
	h.t.Helper()
	said := h.mustSend("other", "wanderer.lookup", map[string]any{"text": nowhere})
	if !strings.Contains(string(said.Result), `["127.0.1.1"]`) {
		h.t.Errorf("%s is %s", nowhere, said.Result)
	}
	if said, err := h.send("other", "wanderer.lookup", map[string]any{"text": "example.org"}); err == nil {
		h.t.Errorf("example.org is %s", said.Result)
	}
	said = h.mustSend("other", "wanderer.dial", map[string]any{"text": nowhere + ":443"})
	if !strings.Contains(string(said.Result), "reset") {
		h.t.Errorf("%s: %s", nowhere, said.Result)
	}
	said = h.mustSend("other", "wanderer.dial", map[string]any{"text": nowhere + ":80"})
	if !strings.Contains(string(said.Result), "refused") {
		h.t.Errorf("another port of %s: %s", nowhere, said.Result)
	}
}

func (h *host) relay(from, kind string, input map[string]any) (client.Result, error) {
	h.t.Helper()
	return h.send(from, "wanderer.relay", map[string]any{"kind": kind, "input": input})
}

// TestCall: a worker asks workers of the types that it was granted, in its own
// name, within its own task, and not without end.
func TestCall(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		newOutpost(t, h)
		far := h.forgeGranted("far", "call:template", "call:wanderer")
		hello := map[string]any{"message": "hello"}
		if _, err := h.relay("far", "template.echo", hello); err == nil || !strings.Contains(err.Error(), "worker_unavailable") {
			t.Errorf("while there is none: %v", err)
		}
		nora := h.forge("nora", "template")
		said, err := h.relay("far", "template.echo", hello)
		if err != nil || !strings.Contains(string(said.Result), `\"hello\"`) {
			t.Fatalf("%s, %v", said.Result, err)
		}
		h.checkCall(said, far, nora)
		for kind, code := range map[string]string{"ledger.head": "call_not_granted", "template.nothing": "kind_unknown", "template.fail": "schema_mismatch"} {
			if _, err := h.relay("far", kind, map[string]any{"strange": 1}); err == nil || !strings.Contains(err.Error(), code) {
				t.Errorf("%s: %v", kind, err)
			}
		}
		h.forgeGranted("near", "call:wanderer")
		if _, err := h.send("far", "wanderer.loop", struct{}{}); err == nil || !strings.Contains(err.Error(), "call_too_deep") {
			t.Errorf("loop: %v", err)
		}
		if loops := h.admitted("wanderer.loop"); len(loops) != 9 || loops[8].CallerSerial == "" || loops[8].Parent != loops[7].ID {
			t.Errorf("%d in the loop: %+v", len(loops), loops)
		}
		h.forgeGranted("home")
		if _, err := h.relay("home", "template.echo", hello); err == nil || !strings.Contains(err.Error(), "granted nothing") {
			t.Errorf("without a grant: %v", err)
		}
	})
}

func (h *host) admitted(kind string) (found []*record.EnvelopeFields) {
	h.t.Helper()
	for _, e := range h.entries() {
		if e.Kind == record.Admitted && e.Envelope.Kind == kind {
			found = append(found, e.Envelope)
		}
	}
	return found
}

// checkCall: the record says who has called whom, and for whom.
func (h *host) checkCall(said client.Result, caller, called client.Worker) {
	h.t.Helper()
	calls := h.admitted("template.echo")
	if len(calls) != 1 || calls[0].CallerSerial != caller.WorkerSerial || calls[0].Parent != said.ID || calls[0].WorkerSerial != called.WorkerSerial {
		h.t.Errorf("called %+v", calls)
		return
	}
	key, err := base64.StdEncoding.DecodeString(caller.PublicKey)
	if err != nil || calls[0].Sender != envelope.ClientID(key) {
		h.t.Errorf("sender %s, %v", calls[0].Sender, err)
	}
	asked := h.admitted("wanderer.relay")
	if last := asked[len(asked)-1]; calls[0].Deadline.After(last.Deadline) {
		h.t.Errorf("until %s, its caller until %s", calls[0].Deadline, last.Deadline)
	}
}

// request puts one HTTP request to a worker's port.
func (h *host) request(w client.Worker, method, path, body string, header ...string) (status int, contentType, text string) {
	h.t.Helper()
	r, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", w.Port, path), strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	c := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: patience}
	resp, err := c.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" || strings.Contains(resp.Header.Get("Content-Type"), "html") {
		h.t.Errorf("%s %s: %v", method, path, resp.Header)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(data)
}

// TestIngress: requests come in where that was granted, as the host's envelopes,
// and nothing goes out that a browser would run.
func TestIngress(t *testing.T) {
	t.Parallel()
	launchers(t, func(t *testing.T, h *host) {
		newOutpost(t, h)
		w := h.forgeGranted("in", "ingress:hooks")
		status, kind, text := h.request(w, "POST", "/in/hooks/a?b=c", "hello", "X-Some", "thing")
		if status != 202 || text != `"POST hooks/a b=c thing HELLO"` || kind != "application/json" {
			t.Errorf("%d %s %s", status, kind, text)
		}
		if in := h.admitted("wanderer.ingress"); len(in) != 1 || in[0].WorkerSerial != w.WorkerSerial || in[0].CallerSerial != "" {
			t.Errorf("admitted %+v", in)
		}
		status, kind, text = h.request(w, "GET", "/in/hooks/page", "")
		if status != 200 || kind != "application/octet-stream" || !strings.Contains(text, "<script>") {
			t.Errorf("%d %s %s", status, kind, text)
		}
		for _, c := range []struct {
			method, path string
			header       []string
			status       int
		}{
			{"GET", "/in/hooks/elsewhere", nil, 502},
			{"GET", "/in/hooks/nonsense", nil, 502},
			{"GET", "/in/hooks/fail", nil, 502},
			{"GET", "/in/", nil, 404},
			{"GET", "/in/hook", nil, 404},
			{"GET", "/in/hooks2", nil, 404},
			{"GET", "/in/hooks/../x", nil, 404},
			{"GET", "/in/hooks//a", nil, 404},
			{"GET", "/in/hooks/%2e%2e/x", nil, 404},
			{"TRACE", "/in/hooks", nil, 405},
			{"POST", "/in/hooks", []string{"Sec-Fetch-Site", "cross-site"}, 403},
			{"GET", "/in/hooks", []string{"Sec-Fetch-Site", "cross-site"}, 403},
			{"POST", "/in/hooks", []string{"Origin", "https://example.org"}, 403},
			{"POST", "/healthz", nil, 405},
		} {
			if status, _, text := h.request(w, c.method, c.path, "", c.header...); status != c.status || strings.Contains(text, "secret") {
				t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
			}
		}
		if status, _, _ := h.request(w, "POST", "/in/hooks", strings.Repeat("x", 1<<20+1)); status != 413 {
			t.Errorf("too much: %d", status)
		}
		other := h.forgeGranted("home")
		if status, _, _ := h.request(other, "GET", "/in/hooks", ""); status != 404 {
			t.Errorf("without a grant: %d", status)
		}
		if _, err := h.client.Stop(t.Context(), "in", 0); err != nil {
			t.Fatal(err)
		}
		if status, _, text := h.request(w, "GET", "/in/hooks", ""); status != 503 || !strings.Contains(text, "worker_unavailable") {
			t.Errorf("stopped: %d %s", status, text)
		}
	})
}
