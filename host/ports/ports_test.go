package ports

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/host/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func free(int) bool { return false }

// pool has n ports of its own: tests of several packages run at a time.
func pool(t *testing.T, n int) *Pool {
	t.Helper()
	low := lowest(t, n)
	p, err := New(Config{Low: low, High: low + n - 1, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// lowest is the first of n ports in a row that nobody holds.
func lowest(t *testing.T, n int) int {
	t.Helper()
	for low := 10000; low < 19000; low += n {
		ok := true
		for port := low; port < low+n && ok; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) // both families
			if ok = err == nil; ok {
				l.Close()
			}
		}
		if _, taken := reserved.LoadOrStore(low, true); ok && !taken {
			return low
		}
	}
	t.Fatal("no free ports")
	return 0
}

var reserved sync.Map // ports that a test has taken for itself, by the first

func bind(t *testing.T, p *Pool) *Listener {
	t.Helper()
	l, err := p.Bind(t.Context(), free)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestRange(t *testing.T) {
	t.Parallel()
	p, err := newPool(Config{}, "32768\t60999\n")
	if err != nil || p.low != 20000 || p.high != 29999 {
		t.Errorf("defaults: %+v, %v", p, err)
	}
	for name, c := range map[string]struct {
		config    Config
		ephemeral string
		want      string
	}{
		"privileged":  {Config{Low: 80, High: 2000}, "32768 60999", "80 to 2000"},
		"too high":    {Config{Low: 65000, High: 70000}, "32768 60999", "65000 to 70000"},
		"backwards":   {Config{Low: 3000, High: 2000}, "32768 60999", "3000 to 2000"},
		"inside":      {Config{Low: 40000, High: 41000}, "32768 60999", "ephemeral ports 32768 to 60999"},
		"first":       {Config{Low: 32000, High: 32768}, "32768 60999", "ephemeral"},
		"last":        {Config{Low: 60999, High: 61005}, "32768 60999", "ephemeral"},
		"around":      {Config{Low: 30000, High: 65000}, "32768 60999", "ephemeral"},
		"default":     {Config{}, "1024 65535", "ephemeral"},
		"not numbers": {Config{}, "a b", "read ephemeral ports"},
		"empty":       {Config{}, "", "read ephemeral ports"},
	} {
		_, err := newPool(c.config, c.ephemeral)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(c.want, "ephemeral ports 3") && (!errors.Is(err, worker.ErrInvalid) || worker.HintOf(err) == "") {
			t.Errorf("%s: %v, hint %q", name, err, worker.HintOf(err))
		}
	}
	for _, outside := range []Config{{Low: 30000, High: 32767}, {Low: 61000, High: 65535}, {Low: 5000, High: 5000}} {
		if _, err := newPool(outside, "32768 60999"); err != nil {
			t.Error(err)
		}
	}
}

func TestBind(t *testing.T) {
	t.Parallel()
	p := pool(t, 8)
	// One port is somebody else's, on all addresses; one the registry's.
	other, err := net.Listen("tcp", fmt.Sprintf(":%d", p.low))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	resting := func(port int) bool { return port == p.low+1 }
	var got []int
	var listeners []*Listener
	for range 6 {
		l, err := p.Bind(t.Context(), resting)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		listeners = append(listeners, l)
		got = append(got, l.Port())
	}
	slices.Sort(got)
	if got[0] != p.low+2 || got[5] != p.high || len(slices.Compact(got)) != 6 {
		t.Errorf("bound %d of %d to %d", got, p.low, p.high)
	}
	_, err = p.Bind(t.Context(), resting)
	if !errors.Is(err, worker.ErrExhausted) || !strings.Contains(err.Error(), fmt.Sprintf("%d to %d", p.low, p.high)) ||
		!strings.Contains(worker.HintOf(err), "--ports LOW-HIGH") {
		t.Errorf("none left: %v; hint %q", err, worker.HintOf(err))
	}
	if _, err := p.Rebind(t.Context(), p.low); !errors.Is(err, worker.ErrConflict) || worker.HintOf(err) == "" {
		t.Errorf("somebody else's: %v", err)
	}
	// A closed port can be bound again at once, by number.
	port := listeners[0].Port()
	for range 2 {
		if err := listeners[0].Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := p.Rebind(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Port() != port {
		t.Errorf("bound %d, want %d", again.Port(), port)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Bind(ctx, free); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// ipv6Here says whether this machine has ::1.
func ipv6Here() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

// TestBothFamilies: a number is one worker's in both families.
func TestBothFamilies(t *testing.T) {
	t.Parallel()
	addresses := []string{"127.0.0.1"}
	if ipv6Here() {
		addresses = append(addresses, "[::1]")
	}
	l := bind(t, pool(t, 1))
	for _, address := range addresses {
		at := fmt.Sprintf("%s:%d", address, l.Port())
		answer, err := http.Get("http://" + at + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", at, answer.Status)
		}
		if other, err := net.Listen("tcp", at); err == nil {
			other.Close()
			t.Errorf("%s can be bound by another", at)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	// Whoever holds it in one family keeps it from workers in both.
	for _, address := range append(addresses, "") {
		p := pool(t, 2)
		other, err := net.Listen("tcp", fmt.Sprintf("%s:%d", address, p.low))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if l := bind(t, p); l.Port() != p.high {
			t.Errorf("port %d was bound although %s is taken", l.Port(), other.Addr())
		}
		if _, err := p.Rebind(t.Context(), p.low); !errors.Is(err, worker.ErrConflict) {
			t.Errorf("rebound although %s is taken: %v", other.Addr(), err)
		}
		other.Close()
		again, err := p.Rebind(t.Context(), p.low)
		if err != nil {
			t.Errorf("nothing holds it any more: %v", err)
			continue
		}
		again.Close()
	}
}

func TestConcurrentBindsNeverCollide(t *testing.T) {
	t.Parallel()
	p := pool(t, 64)
	var mu sync.Mutex
	seen := map[int]bool{}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			l, err := p.Bind(t.Context(), free)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[l.Port()] {
				t.Errorf("%+v, %v", l, err)
				return
			}
			seen[l.Port()] = true
			t.Cleanup(func() { l.Close() })
		})
	}
	wg.Wait()
	if len(seen) != 64 {
		t.Errorf("%d ports", len(seen))
	}
}

// said is an answer, read to its end.
type said struct {
	status int
	header http.Header
	body   string
}

// ask sends one request with a Host of its own.
func ask(t *testing.T, l *Listener, method, path, host string) said {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", l.Port(), path), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host, r.Close = host, true
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return said{answer.StatusCode, answer.Header, string(body)}
}

func own(l *Listener) string { return fmt.Sprintf("127.0.0.1:%d", l.Port()) }

func TestAnswers(t *testing.T) {
	t.Parallel()
	l := bind(t, pool(t, 1))
	well := Health{
		Live: true, Ready: true, IdentityJSON: []byte(`{"worker_name":"nora"}`), VaultIntegrity: true,
		LastHeartbeat: time.UnixMilli(1700000000123), Restarts: 2, TasksDone: 7,
		Limits: worker.Limits{MemoryBytes: 64 << 20, CPUMillis: 500, PIDs: 64},
		Usage:  worker.Usage{At: time.Now(), MemoryBytes: 3 << 20, CPU: 1250 * time.Millisecond, PIDs: 7},
	}
	for _, c := range []struct {
		health *Health
		path   string
		status int
		body   string
	}{
		{nil, "/healthz", 503, "no sign of life\n"},
		{nil, "/readyz", 503, "not ready\n"},
		{nil, "/identity", 503, "no identity yet\n"},
		{nil, "/metrics", 200, "dals_worker_live 0\n"},
		{&Health{Live: true}, "/healthz", 200, "ok\n"},
		{&Health{Reason: "stopped"}, "/healthz", 503, "stopped\n"},
		{&Health{Reason: "stopped"}, "/readyz", 503, "stopped\n"},
		{&Health{Live: true}, "/readyz", 503, "not ready\n"},
		{&well, "/healthz", 200, "ok\n"},
		{&well, "/readyz", 200, "ok\n"},
		{&well, "/identity", 200, `{"worker_name":"nora"}`},
		{&well, "/metrics", 200, "# TYPE dals_worker_restarts_total counter\ndals_worker_restarts_total 2\n"},
		{&well, "/metrics", 200, "\ndals_worker_heartbeat_timestamp_seconds 1700000000.123\n"},
		{&well, "/metrics", 200, "\ndals_worker_memory_limit_bytes 67108864\n"},
		{&well, "/metrics", 200, "\ndals_worker_cpu_limit_cores 0.5\n"},
		{&well, "/metrics", 200, "\ndals_worker_memory_bytes 3145728\n"},
		{&well, "/metrics", 200, "\ndals_worker_cpu_seconds_total 1.25\n"},
		{&well, "/metrics", 200, "\ndals_worker_pids 7\n"},
		{&well, "/", 404, "not found\n"},
		{&well, "/identity/", 404, ""},
		{&well, "/healthz/../metrics", 404, "not found\n"},
	} {
		if c.health != nil {
			l.View(func() Health { return *c.health })
		}
		answer := ask(t, l, http.MethodGet, c.path, own(l))
		if answer.status != c.status || !strings.Contains(answer.body, c.body) {
			t.Errorf("%s of %+v: %+v", c.path, c.health, answer)
		}
		checkHeader(t, c.path, answer.header)
	}
	if answer := ask(t, l, http.MethodHead, "/identity", own(l)); answer.status != 200 || answer.body != "" {
		t.Errorf("HEAD: %+v", answer)
	}
}

func checkHeader(t *testing.T, path string, h http.Header) {
	t.Helper()
	if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" ||
		h.Get("Content-Type") == "" || strings.Contains(h.Get("Content-Type"), "html") {
		t.Errorf("%s: %v", path, h)
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	lines := strings.Split(strings.TrimSuffix(string(Health{LastHeartbeat: time.Now()}.metrics()), "\n"), "\n")
	if len(lines)%3 != 0 {
		t.Fatalf("%q", lines)
	}
	for i := 0; i < len(lines); i += 3 {
		name, value, ok := strings.Cut(lines[i+2], " ")
		kind := "gauge"
		if strings.HasSuffix(name, "_total") {
			kind = "counter"
		}
		if !ok || value == "" || !strings.HasPrefix(lines[i], "# HELP "+name+" ") || lines[i+1] != "# TYPE "+name+" "+kind {
			t.Errorf("%q", lines[i:i+3])
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	l := bind(t, pool(t, 1))
	l.View(func() Health { return Health{Live: true, IdentityJSON: []byte("{}")} })
	port := fmt.Sprint(l.Port())
	for host, status := range map[string]int{
		"127.0.0.1:" + port: 200, "localhost:" + port: 200, "[::1]:" + port: 200,
		"127.0.0.1": 421, "localhost": 421, "evil.example": 421, "evil.example:" + port: 421,
		"localhost:1": 421, "127.0.0.1:" + port + ".evil.example": 421, "localhost.:" + port: 421,
	} {
		if answer := ask(t, l, http.MethodGet, "/identity", host); answer.status != status {
			t.Errorf("Host %q: %d, want %d", host, answer.status, status)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} {
		for _, path := range []string{"/healthz", "/", "/identity"} {
			answer := ask(t, l, method, path, own(l))
			if answer.status != 405 || answer.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %+v", method, path, answer)
			}
		}
	}
}

// TestRawRequests speaks what no client of the library would say.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	l := bind(t, pool(t, 1))
	for name, c := range map[string]struct{ request, want string }{
		"no Host":      {"GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 421 "},
		"empty Host":   {"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", "HTTP/1.1 421 "},
		"two Hosts":    {"GET / HTTP/1.1\r\nHost: " + own(l) + "\r\nHost: x\r\n\r\n", "HTTP/1.1 400 "},
		"absolute":     {"GET http://evil.example/healthz HTTP/1.1\r\nHost: " + own(l) + "\r\n\r\n", "HTTP/1.1 421 "},
		"CONNECT":      {"CONNECT " + own(l) + " HTTP/1.1\r\nHost: " + own(l) + "\r\n\r\n", "HTTP/1.1 405 "},
		"huge headers": {"GET / HTTP/1.1\r\nHost: " + own(l) + "\r\nX: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
		"garbage":      {"\x00\x01\x02\r\n\r\n", "HTTP/1.1 400 "},
	} {
		conn, err := net.Dial("tcp", own(l))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, c.want) {
			t.Errorf("%s: %q, %v", name, line, err)
		}
		conn.Close()
	}
}

// TestCloseAfterRefusals: the server lets the goroutine of a connection whose
// header was too long linger; Close waits for it. Not in parallel: it looks
// at all goroutines.
func TestCloseAfterRefusals(t *testing.T) {
	l := bind(t, pool(t, 1))
	conn, err := net.Dial("tcp", own(l))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 20<<10)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 431 ") {
		t.Fatalf("%q, %v", line, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, 1<<20)
	all = all[:runtime.Stack(all, true)]
	if bytes.Contains(all, []byte("closeWriteAndWait")) {
		t.Errorf("a connection's goroutine outlived Close:\n%s", all)
	}
}

// TestCloseEndsConnections has idle and half-open connections: Close waits for
// none, and leaves none.
func TestCloseEndsConnections(t *testing.T) {
	t.Parallel()
	l := bind(t, pool(t, 1))
	var conns []net.Conn
	for i := range maxConnections + 5 {
		conn, err := net.Dial("tcp", own(l))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
		if i%2 == 0 {
			if _, err := io.WriteString(conn, "GET /heal"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns {
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection outlived Close: %v", err)
		}
	}
	if conn, err := net.Dial("tcp", own(l)); err == nil {
		conn.Close()
		t.Error("the port still answers")
	}
}

// TestLeavesNothing binds and closes many ports: descriptors and sockets are as
// before. Goroutines are goleak's.
func TestLeavesNothing(t *testing.T) {
	p := pool(t, 50)
	before := descriptors(t)
	for range 3 {
		var all []*Listener
		for range 50 {
			l, err := p.Bind(t.Context(), free)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
		}
		for _, l := range all {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	for port := p.low; port <= p.high; port++ {
		l, err := p.Rebind(t.Context(), port)
		if err != nil {
			t.Error(err)
			continue
		}
		l.Close()
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}
