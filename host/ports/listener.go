package ports

import (
	"cmp"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/netutil"
)

const (
	// maxConnections bounds what one port can hold of the host's descriptors, in
	// each family.
	maxConnections = 32
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	idleTimeout    = 30 * time.Second
)

// Listener is one worker's port, bound and served by the host. It is safe for
// concurrent use.
type Listener struct {
	port   int
	server *http.Server
	view   atomic.Pointer[func() Health]
	in     atomic.Pointer[http.HandlerFunc]
	served sync.WaitGroup // the goroutines that accept
	conns  sync.WaitGroup // connections whose goroutine has not ended
	close  func() error
}

func serve(on []net.Listener, port int, logger hclog.Logger) *Listener {
	l := &Listener{port: port}
	l.server = &http.Server{
		Handler:           l.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         l.count,
		ErrorLog:          logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	l.close = sync.OnceValue(l.shut)
	for _, one := range on {
		l.served.Go(func() {
			_ = l.server.Serve(netutil.LimitListener(one, maxConnections)) // ends when Close closes the listener
		})
	}
	return l
}

// Port is the port's number.
func (l *Listener) Port() int { return l.port }

// View gives the function that tells how the worker is; it is called for each
// request, must not block, and may be replaced. Before the first the worker is
// neither live nor ready.
func (l *Listener) View(view func() Health) { l.view.Store(&view) }

// Take has requests under /in/ answered by h; until then they are not found.
func (l *Listener) Take(h http.HandlerFunc) { l.in.Store(&h) }

// Close frees the port and ends what is being served: it returns once nothing
// of it runs any more, which is at once but for the half second that the server
// gives a client to read a refusal that came before its request was all sent. It
// may be called again.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) shut() error {
	err := l.server.Close()
	l.served.Wait()
	// A connection that was being accepted meanwhile is closed by the second.
	err = errors.Join(err, l.server.Close())
	l.conns.Wait()
	return err
}

// count follows the connections: the server's own Close does not wait for them.
func (l *Listener) count(_ net.Conn, now http.ConnState) {
	switch now {
	case http.StateNew: // before Serve can return, so never after Wait has begun
		l.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		l.conns.Done()
	}
}

// handler refuses what is not a plain read under the port's own names: a page
// elsewhere must not reach it by a name of its own that resolves here.
func (l *Listener) handler() http.Handler {
	port := strconv.Itoa(l.port)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		switch r.Host {
		case "127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port:
		default:
			http.Error(w, "this port answers to its own names only", http.StatusMisdirectedRequest)
			return
		}
		if in := l.in.Load(); in != nil && strings.HasPrefix(r.URL.Path, "/in/") {
			(*in)(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "this port can only be read", http.StatusMethodNotAllowed)
			return
		}
		l.answer(w, r.URL.Path)
	})
}

// answer serves the four paths. There is no mux: its redirects are HTML.
func (l *Listener) answer(w http.ResponseWriter, path string) {
	h := l.health()
	const text = "text/plain; charset=utf-8"
	switch {
	case path == "/healthz" && h.Live, path == "/readyz" && h.Ready:
		send(w, text, []byte("ok\n"))
	case path == "/healthz":
		http.Error(w, cmp.Or(h.Reason, "no sign of life"), http.StatusServiceUnavailable)
	case path == "/readyz":
		http.Error(w, cmp.Or(h.Reason, "not ready"), http.StatusServiceUnavailable)
	case path == "/metrics":
		send(w, "text/plain; version=0.0.4; charset=utf-8", h.metrics())
	case path == "/identity" && len(h.IdentityJSON) > 0:
		send(w, "application/json", h.IdentityJSON)
	case path == "/identity":
		http.Error(w, "no identity yet", http.StatusServiceUnavailable)
	default:
		http.Error(w, "not found", http.StatusNotFound)
	}
}

func send(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body) // a reader that has gone is no concern of the host's
}

func (l *Listener) health() Health {
	if view := l.view.Load(); view != nil {
		return (*view)()
	}
	return Health{}
}
