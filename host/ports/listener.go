package ports

import (
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/netutil"
)

const (
	// maxConnections bounds what one port can hold of the host's descriptors.
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
	served chan struct{}
	close  func() error
}

func serve(on net.Listener, port int, logger hclog.Logger) *Listener {
	l := &Listener{port: port, served: make(chan struct{})}
	l.server = &http.Server{
		Handler:           l.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	l.close = sync.OnceValue(l.shut)
	go func() {
		defer close(l.served)
		_ = l.server.Serve(netutil.LimitListener(on, maxConnections)) // ends when Close closes the listener
	}()
	return l
}

// Port is the port's number.
func (l *Listener) Port() int { return l.port }

// View gives the function that tells how the worker is; it is called for each
// request, must not block, and may be replaced. Before the first the worker is
// neither live nor ready.
func (l *Listener) View(view func() Health) { l.view.Store(&view) }

// Close frees the port and ends what is being served. It may be called again.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) shut() error {
	err := l.server.Close()
	<-l.served
	return err
}

// handler answers the four paths.
func (l *Listener) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := l.health()
		say(w, h.Live, "ok", "no sign of life")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := l.health()
		say(w, h.Ready, "ok", "not ready")
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(l.health().metrics())
	})
	mux.HandleFunc("/identity", func(w http.ResponseWriter, _ *http.Request) {
		h := l.health()
		if len(h.IdentityJSON) == 0 {
			http.Error(w, "no identity yet", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(h.IdentityJSON)
	})
	return l.guard(mux)
}

// guard refuses what is not a plain read under the port's own names: a page
// elsewhere must not reach it by a name of its own that resolves here.
func (l *Listener) guard(next http.Handler) http.Handler {
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
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "this port can only be read", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (l *Listener) health() Health {
	if view := l.view.Load(); view != nil {
		return (*view)()
	}
	return Health{}
}

func say(w http.ResponseWriter, well bool, yes, no string) {
	if !well {
		http.Error(w, no, http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(yes + "\n"))
}
