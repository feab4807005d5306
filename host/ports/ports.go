// Package ports binds workers' HTTP ports. The host itself listens on a
// worker's port from its allocation on, so two workers can never have the same
// one, and answers there from what it knows of the worker: no request and no
// byte ever passes between a browser and a worker.
//
// A port is bound on 127.0.0.1 and, where the machine has IPv6, on ::1: the
// number is one worker's in both families, or nobody's.
//
// A Pool binds; a Listener serves /healthz, /readyz, /metrics and /identity for
// GET and HEAD, under its own names only, until it is closed, and then leaves
// neither goroutine nor socket. A port that somebody else holds is skipped at
// allocation and a worker.ErrConflict when it must be bound again.
//
// The package does not remember which ports are allocated or resting after a
// retirement: that is the registry's, and comes in as a function.
package ports

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/worker"
)

// The range of a host that was given none.
const (
	DefaultLow  = 20000
	DefaultHigh = 29999
)

const (
	ipv4 = "127.0.0.1"
	ipv6 = "::1"

	// ephemeralFile holds the ports that the kernel gives to outgoing
	// connections; one of these may be in use at any moment.
	ephemeralFile = "/proc/sys/net/ipv4/ip_local_port_range"
	// What it says where nobody has changed it.
	usualFrom, usualTo = 32768, 60999
)

// Config bounds the ports of a host. Zero values mean DefaultLow to DefaultHigh.
type Config struct {
	Low, High int // both inclusive
	Logger    hclog.Logger
}

// Pool binds ports of one range. It is safe for concurrent use.
type Pool struct {
	low, high int
	logger    hclog.Logger
}

// New checks the range: within 1024 to 65535, and outside the one that the
// kernel hands to outgoing connections. Otherwise it is a worker.ErrInvalid.
func New(c Config) (*Pool, error) {
	ephemeral, err := os.ReadFile(ephemeralFile)
	if err != nil {
		return nil, fmt.Errorf("read ephemeral ports: %w", err)
	}
	return newPool(c, string(ephemeral))
}

func newPool(c Config, ephemeral string) (*Pool, error) {
	if c.Low == 0 && c.High == 0 {
		c.Low, c.High = DefaultLow, DefaultHigh
	}
	if c.Low < 1024 || c.High > 65535 || c.Low > c.High {
		return nil, worker.Hint(fmt.Errorf("ports %d to %d: %w", c.Low, c.High, worker.ErrInvalid),
			"name the lowest and the highest, within 1024 to 65535")
	}
	from, to, err := parseEphemeral(ephemeral)
	if err != nil {
		return nil, fmt.Errorf("read ephemeral ports: %w", err)
	}
	if c.Low <= to && from <= c.High {
		hint := "choose others: dals-host serve --ports LOW-HIGH"
		if from != usualFrom || to != usualTo {
			hint += fmt.Sprintf("; or give the kernel its usual ones: sysctl -w net.ipv4.ip_local_port_range=\"%d %d\"", usualFrom, usualTo)
		}
		return nil, worker.Hint(
			fmt.Errorf("ports %d to %d overlap the kernel's ephemeral ports %d to %d: %w", c.Low, c.High, from, to, worker.ErrInvalid), hint)
	}
	return &Pool{low: c.Low, high: c.High, logger: c.Logger}, nil
}

func parseEphemeral(s string) (from, to int, err error) {
	f := strings.Fields(s)
	if len(f) != 2 {
		return 0, 0, fmt.Errorf("%.40q: %w", s, worker.ErrInvalid)
	}
	from, err1 := strconv.Atoi(f[0])
	to, err2 := strconv.Atoi(f[1])
	return from, to, errors.Join(err1, err2)
}

// Bind binds a free port, beginning at a random one, that taken does not know;
// ports that others hold are skipped. When none is left it is a
// worker.ErrExhausted. The listener serves at once.
func (p *Pool) Bind(ctx context.Context, taken func(port int) bool) (*Listener, error) {
	n := p.high - p.low + 1
	start := rand.IntN(n) //nolint:gosec // a port is no secret
	for i := range n {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("bind port: %w", context.Cause(ctx))
		}
		port := p.low + (start+i)%n
		if taken(port) {
			continue
		}
		l, err := p.listen(ctx, port)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
	}
	return nil, worker.Hint(
		fmt.Errorf("bind port: all of %d to %d are in use, or rest after a retirement: %w", p.low, p.high, worker.ErrExhausted),
		"give the host more of them: dals-host serve --ports LOW-HIGH; or retire workers, and wait until their ports have rested")
}

// Rebind binds the port of a worker that has one already. One that somebody
// else holds meanwhile is a worker.ErrConflict.
func (p *Pool) Rebind(ctx context.Context, port int) (*Listener, error) {
	l, err := p.listen(ctx, port)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, worker.Hint(fmt.Errorf("%w: %w", worker.ErrConflict, err),
			fmt.Sprintf("see who holds it: ss -ltnp 'sport = :%d'", port))
	}
	return l, err
}

// listen binds the port in both families, or not at all.
func (p *Pool) listen(ctx context.Context, port int) (*Listener, error) {
	var c net.ListenConfig
	var bound []net.Listener
	for _, address := range []string{ipv4, ipv6} {
		l, err := c.Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if address == ipv6 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
			continue // the machine has no IPv6, or none on its loopback
		}
		if err != nil {
			for _, l := range bound {
				_ = l.Close() // nobody has connected yet
			}
			return nil, fmt.Errorf("bind port %d: %w", port, err)
		}
		bound = append(bound, l)
	}
	return serve(bound, port, p.logger), nil
}
