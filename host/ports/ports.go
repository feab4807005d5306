// Package ports binds workers' HTTP ports. The host itself listens on a
// worker's port from its allocation on, so two workers can never have the same
// one, and answers there from what it knows of the worker: no request and no
// byte ever passes between a browser and a worker.
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

const (
	defaultLow     = 20000
	defaultHigh    = 29999
	defaultAddress = "127.0.0.1"

	// ephemeralFile holds the ports that the kernel gives to outgoing
	// connections; one of these may be in use at any moment.
	ephemeralFile = "/proc/sys/net/ipv4/ip_local_port_range"
)

// Config bounds the ports of a host. Zero values mean 20000 to 29999 on
// 127.0.0.1.
type Config struct {
	Low, High int // both inclusive
	Address   string
	Logger    hclog.Logger
}

// Pool binds ports of one range. It is safe for concurrent use.
type Pool struct {
	low, high int
	address   string
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
		c.Low, c.High = defaultLow, defaultHigh
	}
	if c.Address == "" {
		c.Address = defaultAddress
	}
	if c.Low < 1024 || c.High > 65535 || c.Low > c.High {
		return nil, fmt.Errorf("ports %d to %d: %w", c.Low, c.High, worker.ErrInvalid)
	}
	from, to, err := parseEphemeral(ephemeral)
	if err != nil {
		return nil, fmt.Errorf("read ephemeral ports: %w", err)
	}
	if c.Low <= to && from <= c.High {
		return nil, worker.Hint(
			fmt.Errorf("ports %d to %d overlap the kernel's ephemeral ports %d to %d: %w", c.Low, c.High, from, to, worker.ErrInvalid),
			fmt.Sprintf("choose other ports, or run: sysctl -w net.ipv4.ip_local_port_range=\"%d %d\"", 32768, 60999))
	}
	return &Pool{low: c.Low, high: c.High, address: c.Address, logger: c.Logger}, nil
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
	return nil, worker.Hint(fmt.Errorf("bind port: all of %d to %d are in use: %w", p.low, p.high, worker.ErrExhausted),
		"retire workers, or give the host more ports")
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

func (p *Pool) listen(ctx context.Context, port int) (*Listener, error) {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", net.JoinHostPort(p.address, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("bind port %d: %w", port, err)
	}
	return serve(l, port, p.logger), nil
}
