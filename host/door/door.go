// Package door lets workers out, as far as they were granted it. A worker with
// grants has a door: a unix socket in a folder of its own that the host owns and
// that the worker's launcher shows it read-only, so that a new host's socket
// appears where the old one was. Through it the worker asks for TCP connections
// (docs/adr/0017), which the host makes, and for tasks of other workers, which go
// through the host's gate.
//
// The socket's place says which worker it is, and the peer's uid has to be that
// worker's. What was not granted is refused. Names are resolved here, once for
// each connection, and the address that is dialled is one of those that were
// looked at: not private, unless the grant names just that address. Every
// connection is in the record before its first byte passes, and again with its
// bytes when it has ended; what is refused is counted, and told of once a minute,
// so that no worker can fill the record.
//
// A worker is a stranger's code: connections, their rate, and the time that each
// part takes are bounded for each worker, connections for all together too.
package door

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/worker"
)

// Recorder makes entries durable and tells their index.
type Recorder interface {
	Record(ctx context.Context, entry record.Entry) (index uint64, err error)
}

// Config is what Doors need.
type Config struct {
	Recorder Recorder
	Exchange Exchange
	Resolver *net.Resolver // nil for the machine's
	Logger   hclog.Logger
}

// The bounds of what goes through doors.
const (
	maxConnections    = 64   // of one worker at a time
	maxAllConnections = 2048 // of all
	openRate          = 20   // connections a second of one worker, in the long run
	openBurst         = 100
	connectTimeout    = 10 * time.Second // to look up a name and to connect
	idleTimeout       = 5 * time.Minute  // without a byte either way
	summaryEvery      = time.Minute
)

// Doors are the doors of all workers. They are safe for concurrent use.
type Doors struct {
	Config
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	idle     time.Duration
	accepted atomic.Int64 // connections of all workers
	ctx      context.Context
	cancel   context.CancelFunc

	mu   sync.Mutex
	open map[worker.Serial]*door
	past map[worker.Serial]*traffic // of all doors since the host began
}

// New makes Doors, with none open.
func New(c Config) *Doors {
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	d := &Doors{
		Config: c, dial: (&net.Dialer{}).DialContext, idle: idleTimeout,
		open: map[worker.Serial]*door{}, past: map[worker.Serial]*traffic{},
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Open opens the door of a worker that was granted something and whose folder is
// dir. One that is open stays as it is.
func (d *Doors) Open(w worker.Worker, dir string) error {
	if len(w.Grants) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[w.Serial] != nil || d.ctx.Err() != nil {
		return nil
	}
	if d.past[w.Serial] == nil {
		d.past[w.Serial] = &traffic{}
	}
	one, err := d.newDoor(w, dir, d.past[w.Serial])
	if err != nil {
		return fmt.Errorf("open door of worker %s: %w", w.Serial, err)
	}
	d.open[w.Serial] = one
	return nil
}

// Shut closes a worker's door, cuts its connections and returns once all of that
// is recorded. A worker without a door has nothing to shut.
func (d *Doors) Shut(serial worker.Serial) error {
	d.mu.Lock()
	one := d.open[serial]
	delete(d.open, serial)
	d.mu.Unlock()
	if one == nil {
		return nil
	}
	return one.shut()
}

// Forget drops what is known of a worker that will not come back.
func (d *Doors) Forget(serial worker.Serial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.past, serial)
}

// Close shuts every door. None opens after it.
func (d *Doors) Close() error {
	d.cancel()
	var errs []error
	for _, serial := range d.serials() {
		errs = append(errs, d.Shut(serial))
	}
	return errors.Join(errs...)
}

func (d *Doors) serials() []worker.Serial {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]worker.Serial, 0, len(d.open))
	for serial := range d.open {
		all = append(all, serial)
	}
	return all
}

// Run writes the summaries of what was refused until ctx ends.
func (d *Doors) Run(ctx context.Context) error {
	ticker := time.NewTicker(summaryEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			d.summarize(ctx)
		case <-ctx.Done():
			return nil // Shut writes the last ones
		}
	}
}

func (d *Doors) summarize(ctx context.Context) {
	d.mu.Lock()
	open := make([]*door, 0, len(d.open))
	for _, one := range d.open {
		open = append(open, one)
	}
	d.mu.Unlock()
	for _, one := range open {
		one.refusals.summarize(ctx)
	}
}

// Traffic is what went through a worker's door since the host began.
type Traffic struct {
	Open           int    // connections at the moment
	Connections    uint64 // that were opened
	Refused        uint64
	Sent, Received uint64 // bytes, as the worker sees it
}

type traffic struct {
	open                                 atomic.Int64
	connections, refused, sent, received atomic.Uint64
}

// Traffic tells of a worker's door.
func (d *Doors) Traffic(serial worker.Serial) Traffic {
	d.mu.Lock()
	t := d.past[serial]
	d.mu.Unlock()
	if t == nil {
		return Traffic{}
	}
	return Traffic{
		Open: int(t.open.Load()), Connections: t.connections.Load(), Refused: t.refused.Load(),
		Sent: t.sent.Load(), Received: t.received.Load(),
	}
}
