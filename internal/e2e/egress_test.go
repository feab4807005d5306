package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// newOnline starts a host on containerd in an internet, with a wanderer that asks
// for egress to places there.
func newOnline(n *internet, places ...string) *host {
	n.t.Helper()
	h := &host{t: n.t, launcher: "containerd", binary: n.binary}
	h.setup()
	h.dropWanderer(egress(places...)...)
	return h
}

func egress(places ...string) (caps []string) {
	for _, place := range places {
		caps = append(caps, "egress:"+place)
	}
	return caps
}

// runJSON runs a command with --json, and decodes what it prints.
func (h *host) runJSON(out any, args ...string) {
	h.t.Helper()
	stdout, stderr, code := h.run(append(args, "--json")...)
	if code != 0 {
		h.t.Fatalf("%q: exit %d: %s\n%s", args, code, stderr, h.log)
	}
	if err := json.Unmarshal([]byte(stdout), out); err != nil {
		h.t.Fatalf("%q: %v: %s", args, err, stdout)
	}
}

// forgeOnline forges a wanderer as an operator does.
func (h *host) forgeOnline(name string, places ...string) (made client.Worker) {
	h.t.Helper()
	args := []string{"forge", "--type", "wanderer", "--name", name, "--class-code", "A1"}
	for _, c := range egress(places...) {
		args = append(args, "--grant", c)
	}
	h.runJSON(&made, args...)
	if !slices.Equal(made.Grants, slices.Sorted(slices.Values(egress(places...)))) {
		h.t.Errorf("granted %q", made.Grants)
	}
	return made
}

// visit has a worker fetch a URL, by net/http as it is or by the SDK's dialer.
func (h *host) visit(name, url string, bySDK bool) (string, error) {
	h.t.Helper()
	said, err := h.send(name, "wanderer.fetch", map[string]any{"url": url, "sdk": bySDK})
	return string(said.Result), err
}

// closedTo waits until as many connections of a worker to a place have ended as
// its server has seen, and compares the bytes in the record with the server's.
func (h *host) closedTo(serial, place string, p *passing, outcomes ...string) {
	h.t.Helper()
	var ends []*record.EgressFields
	var sent, received uint64
	h.eventually("ends of connections to "+place+" recorded", func() error {
		ends, sent, received = nil, 0, 0
		for _, e := range h.entriesOf(serial, record.EgressClosed) {
			if fmt.Sprintf("%s:%d", e.Egress.Host, e.Egress.Port) == place {
				ends = append(ends, e.Egress)
				sent, received = sent+e.Egress.Sent, received+e.Egress.Received
			}
		}
		if n := p.connections.Load(); n == 0 || uint64(len(ends)) != n {
			return fmt.Errorf("%d recorded of %d", len(ends), n)
		}
		return nil
	})
	opened := map[uint64]record.Entry{}
	for i, e := range h.entries() {
		if e.Kind == record.EgressOpened {
			opened[uint64(i)] = e
		}
	}
	for _, end := range ends {
		if !slices.Contains(outcomes, end.Outcome) || end.OpenedIndex == nil {
			h.t.Fatalf("%s: %+v", place, end)
		}
		if begin := opened[*end.OpenedIndex]; begin.Egress == nil || begin.Egress.Address != end.Address || string(begin.Worker.Serial) != serial {
			h.t.Errorf("%s: ended %+v, begun %+v", place, end, begin)
		}
	}
	if sent != p.in.Load() || received != p.out.Load() || sent+received == 0 {
		h.t.Errorf("%s: recorded %d bytes sent and %d received, the server has read %d and written %d", place, sent, received, p.in.Load(), p.out.Load())
	}
}

// TestEgressByName: a worker in a container that was granted a name reaches it by
// its name with any library, and the record has the bytes that its server has
// seen. What was not granted is not there.
func TestEgressByName(t *testing.T) {
	t.Parallel()
	n := newInternet(t, map[string][]string{"shop.example": {public}, "other.example": {public}})
	hello := func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, "hello from %s", r.Host) }
	shop, other := n.web(public+":80", hello), n.web(public+":8080", hello)
	h := newOnline(n, "shop.example:80", "shop.example:8080", "other.example:80")
	w := h.forgeOnline("far", "shop.example:80")
	h.forgeOnline("home")
	for range 2 {
		var said client.Result
		h.runJSON(&said, "send", "far", "wanderer.fetch", `{"url": "http://shop.example/"}`)
		if !strings.Contains(string(said.Result), "hello from shop.example") {
			t.Errorf("fetched %s", said.Result)
		}
		for name, urls := range map[string][]string{
			"far":  {"http://other.example/", "http://shop.example:8080/", "http://" + public + "/"},
			"home": {"http://shop.example/", "http://other.example/", "http://" + public + "/"},
		} {
			for _, url := range urls {
				if said, err := h.visit(name, url, false); !says(err, "no such host", "unreachable", "refused") {
					t.Errorf("%s fetched %s: %s, %v", name, url, said, err)
				}
				if said, err := h.visit(name, url, true); err == nil || !strings.Contains(err.Error(), "not_granted") {
					t.Errorf("%s by the sdk fetched %s: %s, %v", name, url, said, err)
				}
			}
			h.noWayOut(name)
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
	if shop.connections.Load() != 2 || other.connections.Load() != 0 || n.questions("shop.example") != 2 || n.questions("other.example") != 0 {
		t.Errorf("%d and %d connections, %d and %d questions", shop.connections.Load(), other.connections.Load(), n.questions("shop.example"), n.questions("other.example"))
	}
	h.closedTo(w.WorkerSerial, "shop.example:80", shop, "closed", "cut")
	h.proved(w.WorkerSerial)
}

// says says whether an error has one of some words.
func says(err error, words ...string) bool {
	return err != nil && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(err.Error(), w) })
}

// noWayOut: nothing of the internet and of its private networks is there.
func (h *host) noWayOut(name string) {
	h.t.Helper()
	aims := []string{public + ":80", public + ":8080", nameserver() + ":53"}
	for _, addr := range private[1:] { // the first is the container's own
		aims = append(aims, addr+":80")
	}
	said := h.mustSend(name, "wanderer.escape", map[string]any{"list": aims})
	if !strings.Contains(string(said.Result), `"list":[]`) {
		h.t.Errorf("%s got out: %s", name, said.Result)
	}
}

// proved: the end of a connection is in the record that an operator can prove.
func (h *host) proved(serial string) {
	h.t.Helper()
	for i, e := range h.entries() {
		if e.Kind != record.EgressClosed || string(e.Worker.Serial) != serial {
			continue
		}
		h.eventually("entry published", func() error {
			stdout, stderr, code := h.run("vault", "prove", strconv.Itoa(i))
			if code != 0 || !strings.Contains(stdout, fmt.Sprintf(`"received":%d`, e.Egress.Received)) {
				return fmt.Errorf("exit %d: %s%s", code, stdout, stderr)
			}
			return nil
		})
	}
	if stdout, stderr, code := h.run("vault", "verify"); code != 0 {
		h.t.Errorf("vault verify: exit %d: %s%s", code, stdout, stderr)
	}
}

// TestEgressToPrivate: whatever a granted name is said to be at, in one answer or
// by and by, it never leads to an address that is not of the internet; a grant
// of the address itself does.
func TestEgressToPrivate(t *testing.T) {
	t.Parallel()
	names := map[string][]string{
		"loop6.example": {"::1"}, "mapped.example": {"::ffff:10.66.0.1"}, "all.example": {strings.Join(private, " ")},
		"rebind.example": {public, "127.0.0.1"}, "both.example": {"10.66.0.1 " + public + " 127.0.0.1"},
	}
	refused := []string{"loop6.example", "mapped.example", "all.example"}
	for i, addr := range private {
		name := fmt.Sprintf("private%d.example", i)
		names[name] = []string{addr}
		refused = append(refused, name)
	}
	n := newInternet(t, names)
	shop := n.web(public+":80", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the shop") })
	moving := n.web(public+":83", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "still here") })
	traps := slices.Concat(n.traps("80"), n.traps("81"), n.traps("83"))
	places := []string{"rebind.example:83", "both.example:80", "both.example:81", "10.66.0.1:82"}
	for _, name := range refused {
		places = append(places, name+":80")
	}
	h := newOnline(n, places...)
	w := h.forgeOnline("far", places...)
	for _, name := range refused {
		h.refusedBoth("http://"+name+"/", "egress_address_refused")
	}
	h.reached("http://rebind.example:83/", "still here")
	h.refusedBoth("http://rebind.example:83/", "egress_address_refused") // by now it is somewhere else
	h.reached("http://both.example/", "the shop")
	h.refusedBoth("http://both.example:81/", "egress_unreachable") // nobody listens at the public one
	n.web("10.66.0.1:82", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the cellar") })
	if said, err := h.visit("far", "http://10.66.0.1:82/", true); err != nil || !strings.Contains(said, "the cellar") {
		t.Errorf("granted by address: %s, %v", said, err)
	}
	for _, trap := range traps {
		if got := trap.connections.Load(); got != 0 {
			t.Errorf("%d connections to %s", got, trap.Addr())
		}
	}
	h.closedTo(w.WorkerSerial, "rebind.example:83", moving, "closed")
	h.closedTo(w.WorkerSerial, "both.example:80", shop, "closed")
	if _, stderr, code := h.run("retire", "far"); code != 0 { // with its door the last of it is told
		t.Fatalf("retire: exit %d: %s", code, stderr)
	}
	counts := map[string]uint64{}
	for _, e := range h.entriesOf(w.WorkerSerial, record.EgressRefused) {
		counts[e.Refusal.Code] += e.Refusal.Count
	}
	if want := uint64(2 * (len(refused) + 1)); counts["egress_address_refused"] != want || counts["egress_unreachable"] != 2 || len(counts) != 2 {
		t.Errorf("refused %v, want %d addresses", counts, want)
	}
	for _, e := range h.entriesOf(w.WorkerSerial, record.EgressOpened) {
		if !strings.HasPrefix(e.Egress.Address, public+":") && e.Egress.Address != "10.66.0.1:82" {
			t.Errorf("opened %+v", e.Egress)
		}
	}
}

// reached: the worker far reads a text at a URL.
func (h *host) reached(url, text string) {
	h.t.Helper()
	if said, err := h.visit("far", url, false); err != nil || !strings.Contains(said, text) {
		h.t.Errorf("%s: %s, %v", url, said, err)
	}
}

// refusedBoth: the worker far cannot reach a URL, neither as any program would nor
// by the SDK, which knows why.
func (h *host) refusedBoth(url, code string) {
	h.t.Helper()
	if said, err := h.visit("far", url, false); !says(err, "reset", "broken pipe") {
		h.t.Errorf("%s: %s, %v", url, said, err)
	}
	if said, err := h.visit("far", url, true); err == nil || !strings.Contains(err.Error(), code) {
		h.t.Errorf("%s by the sdk: %s, %v", url, said, err)
	}
}
