// Package ingress lets HTTP requests in to workers, as far as that was granted: a
// request under /in/PATH on a worker's port becomes an envelope of the host's own
// for the task <type>.ingress, through gate and record as any other. What the
// worker answers is served as bytes or as JSON and never as anything that a
// browser would show or run: it is a stranger's.
package ingress

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Prefix begins every path that leads to a worker.
const Prefix = "/in/"

// The bounds of requests to one worker.
const (
	maxBody     = 1 << 20 // bytes
	inRate      = 50      // a second, in the long run
	inBurst     = 100
	atOnce      = 16 // fewer than a port has connections: its health is asked for too
	taskTimeout = 30 * time.Second
	slack       = 10 * time.Second // to write the answer
)

// Workers finds a worker as it is now.
type Workers interface {
	Worker(ctx context.Context, serial worker.Serial) (worker.Worker, error)
}

// Sender carries the host's own envelopes.
type Sender interface {
	// Ingress sends one that came in under a granted path, and waits for the
	// worker's signed result.
	Ingress(ctx context.Context, peer, granted string, env *workerv1.Envelope, timeout time.Duration) (*workerv1.Envelope, error)
}

// Config is what a Gateway needs.
type Config struct {
	Key     ed25519.PrivateKey // of the host, for this use alone
	Workers Workers
	Sender  Sender
	Logger  hclog.Logger
}

// Gateway takes requests in. It is safe for concurrent use.
type Gateway struct {
	Config
	origin *http.CrossOriginProtection

	mu     sync.Mutex
	places map[worker.Serial]*place
}

// place bounds the requests to one worker.
type place struct {
	rate  *rate.Limiter
	slots chan struct{} // full when no more may be under way
}

// New makes a Gateway.
func New(c Config) *Gateway {
	return &Gateway{Config: c, origin: http.NewCrossOriginProtection(), places: map[worker.Serial]*place{}}
}

// Forget drops what is known of a worker that will not come back.
func (g *Gateway) Forget(serial worker.Serial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.places, serial)
}

// problem is why a request is not answered by its worker.
type problem struct {
	status int
	text   string
}

func (p *problem) Error() string { return p.text }

// Serve answers a request on a worker's port whose path begins with Prefix.
func (g *Gateway) Serve(serial worker.Serial, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox")
	answer, err := g.take(serial, w, r)
	if err != nil {
		var p *problem
		if !errors.As(err, &p) {
			g.Logger.Warn("request to a worker failed", "serial", serial, "error", err)
			p = &problem{http.StatusBadGateway, "the worker gave no answer"}
		}
		http.Error(w, p.text, p.status)
		return
	}
	contentType := "application/octet-stream"
	if answer.JSON {
		contentType = "application/json"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(answer.Status)
	_, _ = w.Write(answer.Body) // a reader that has gone is no concern of the host's
}

func (g *Gateway) take(serial worker.Serial, w http.ResponseWriter, r *http.Request) (*wire.IngressAnswer, error) {
	to, err := g.Workers.Worker(r.Context(), serial)
	if err != nil {
		return nil, err
	}
	granted := match(to.Grants, r.URL.Path)
	switch {
	case granted == "":
		return nil, &problem{http.StatusNotFound, "not found"}
	case g.origin.Check(r) != nil || isOfOtherSite(r): // a page of somebody else's in a browser of this machine
		return nil, &problem{http.StatusForbidden, "this is not for pages of other origins"}
	case !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, r.Method):
		return nil, &problem{http.StatusMethodNotAllowed, "use GET, POST, PUT, PATCH or DELETE"}
	}
	leave, err := g.enter(serial)
	if err != nil {
		return nil, err
	}
	defer leave()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("more than %d bytes", maxBody)}
	}
	if err != nil {
		return nil, &problem{http.StatusBadRequest, "the body did not come whole"}
	}
	conn := http.NewResponseController(w)
	if err := errors.Join(conn.SetReadDeadline(time.Time{}), conn.SetWriteDeadline(time.Now().Add(taskTimeout+slack))); err != nil {
		return nil, err
	}
	env, err := g.envelope(to, r, body)
	if err != nil {
		return nil, err
	}
	result, err := g.Sender.Ingress(r.Context(), "port of worker "+string(serial), granted, env, taskTimeout)
	if err != nil {
		return nil, refusalOf(err)
	}
	return read(result)
}

// isOfOtherSite says whether a browser asks for a page of another site. A GET is not
// safe here, as http.CrossOriginProtection takes it to be: it has a task done.
func isOfOtherSite(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "none" && site != "same-origin"
}

// match is the grant that a path falls under, the most particular one, or "". A
// path that has other spellings falls under none.
func match(grants []string, full string) (found string) {
	at, ok := strings.CutPrefix(full, Prefix)
	if !ok || path.Clean(full) != strings.TrimSuffix(full, "/") {
		return ""
	}
	for _, g := range grants {
		c, err := capability.Parse(g)
		if err != nil || c.Kind != capability.Ingress || at != c.Name && !strings.HasPrefix(at, c.Name+"/") {
			continue
		}
		if len(g) > len(found) {
			found = g
		}
	}
	return found
}

// enter takes a place among the requests to a worker.
func (g *Gateway) enter(serial worker.Serial) (leave func(), err error) {
	p := g.place(serial)
	if !p.rate.Allow() {
		return nil, &problem{http.StatusTooManyRequests, fmt.Sprintf("more than %d requests a second", inRate)}
	}
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	default:
		return nil, &problem{http.StatusTooManyRequests, fmt.Sprintf("more than %d requests at a time", atOnce)}
	}
}

func (g *Gateway) place(serial worker.Serial) *place {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.places[serial]
	if p == nil {
		p = &place{rate.NewLimiter(inRate, inBurst), make(chan struct{}, atOnce)}
		g.places[serial] = p
	}
	return p
}

// envelope is the request as the worker gets it, signed by the host.
func (g *Gateway) envelope(to worker.Worker, r *http.Request, body []byte) (*workerv1.Envelope, error) {
	payload, err := json.Marshal(wire.IngressRequest{
		Method: r.Method, Path: strings.TrimPrefix(r.URL.Path, Prefix), Query: r.URL.RawQuery, Header: r.Header, Peer: r.RemoteAddr, Body: body,
	})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	id := envelope.ClientID(g.Key.Public().(ed25519.PublicKey))
	return envelope.New(g.Key, id, &workerv1.Header{Recipient: string(to.Serial), Kind: to.Type + wire.IngressVerb}, payload)
}

// refusalOf tells what kept a request from its worker.
func refusalOf(err error) error {
	refusal, refused := errors.AsType[*worker.Refusal](err)
	switch {
	case refused:
		return &problem{http.StatusServiceUnavailable, refusal.Code}
	case errors.Is(err, worker.ErrDeadline), errors.Is(err, context.DeadlineExceeded):
		return &problem{http.StatusGatewayTimeout, "the worker gave no answer in time"}
	case errors.Is(err, worker.ErrUnavailable):
		return &problem{http.StatusServiceUnavailable, "unavailable"}
	}
	return err
}

// read reads a worker's result as what it is: a stranger's bytes.
func read(result *workerv1.Envelope) (*wire.IngressAnswer, error) {
	h, err := envelope.Parse(result)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	if h.Status != workerv1.ResultStatus_RESULT_STATUS_OK {
		return nil, &problem{http.StatusBadGateway, "the worker failed"}
	}
	a := &wire.IngressAnswer{}
	if err := json.Unmarshal(result.GetPayload(), a); err != nil {
		return nil, &problem{http.StatusBadGateway, "the worker's answer is none"}
	}
	// Informational ones are the server's own, and nobody is led elsewhere.
	if a.Status < 200 || a.Status > 599 || a.Status >= 300 && a.Status < 400 || a.JSON && !json.Valid(bytes.TrimSpace(a.Body)) {
		return nil, &problem{http.StatusBadGateway, "the worker's answer is none"}
	}
	if a.Status == http.StatusNoContent {
		a.Body = nil
	}
	return a, nil
}
