package host

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/forge"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
)

// backend is what the control API asks, answered by the host's parts.
type backend struct{ *Host }

func (b backend) Forge(ctx context.Context, r control.ForgeRequest) (control.ForgeResult, error) {
	if err := b.checkRecord(); err != nil {
		return control.ForgeResult{}, err
	}
	made, err := b.forge.Forge(ctx, forge.Request(r))
	if err != nil {
		return control.ForgeResult{}, err
	}
	if !made.Existed {
		b.integrity.made(made.Worker.Serial)
	}
	return control.ForgeResult{Worker: b.fullView(ctx, made.Worker), Existed: made.Existed}, nil
}

func (b backend) Plan(ctx context.Context, r control.ForgeRequest) (control.Plan, error) {
	plan, err := b.forge.Plan(ctx, forge.Request(r))
	if err != nil {
		return control.Plan{}, err
	}
	p := control.Plan{Hash: plan.Hash, Worker: control.WorkerView{
		Worker: plan.Worker, HeartbeatInterval: heartbeatInterval, NotGranted: plan.NotGranted, Allowed: b.spec(plan.Worker).Limits,
	}}
	for _, s := range plan.Steps {
		p.Steps = append(p.Steps, control.PlanStep(s))
	}
	for _, f := range plan.Files {
		p.Files = append(p.Files, control.PlanFile(f))
	}
	if plan.Manifest != nil {
		if p.Manifest, err = json.Marshal(plan.Manifest); err != nil {
			return control.Plan{}, fmt.Errorf("encode planned manifest: %w", err)
		}
	}
	return p, nil
}

func (b backend) Retire(ctx context.Context, ref string, grace time.Duration) (worker.Worker, error) {
	w, err := findWorker(ctx, b.registry, ref)
	if err != nil {
		return w, err
	}
	return b.forge.Retire(ctx, w.Serial, grace)
}

func (b backend) Send(ctx context.Context, r control.SendRequest) (control.SendResult, error) {
	if err := b.checkRecord(); err != nil {
		return control.SendResult{}, err
	}
	reply, err := b.broker.Send(ctx, r.Peer, r.Envelope, r.Timeout)
	if err != nil {
		return control.SendResult{}, err
	}
	return control.SendResult{
		Result: reply.Result, Serial: reply.Worker.Serial, PublicKey: reply.Worker.PublicKey,
		AdmittedIndex: reply.AdmittedIndex, ResultIndex: reply.ResultIndex, Duration: reply.Duration,
	}, nil
}

func (b backend) AddClient(ctx context.Context, name string, publicKey []byte) (control.Client, error) {
	if err := worker.CheckClientName(name); err != nil {
		return control.Client{}, err
	}
	if len(publicKey) != ed25519.PublicKeySize {
		return control.Client{}, fmt.Errorf("public key of %d bytes, want %d: %w", len(publicKey), ed25519.PublicKeySize, worker.ErrInvalid)
	}
	c := registry.Client{Name: name, ID: envelope.ClientID(publicKey), PublicKey: publicKey, CreatedAt: time.Now().UTC()}
	return clientView(c), b.enrol(ctx, c, nil)
}

func clientView(c registry.Client) control.Client {
	return control.Client{Name: c.Name, ID: c.ID, CreatedAt: c.CreatedAt, RevokedAt: c.RevokedAt}
}

// enrol adds a client and its entry in one transaction, with whatever else
// belongs to it.
func (h *Host) enrol(ctx context.Context, c registry.Client, also func(*registry.Tx) error) error {
	line, err := clientEntry(record.ClientAdded, c, c.CreatedAt)
	if err != nil {
		return err
	}
	return h.registry.Update(ctx, func(tx *registry.Tx) error {
		if err := tx.AddClient(c); err != nil {
			return err
		}
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		_, err := tx.Append(line)
		return err
	})
}

func clientEntry(kind record.Kind, c registry.Client, at time.Time) ([]byte, error) {
	return record.Entry{At: at, Kind: kind, Client: &record.ClientFields{Name: c.Name, ID: c.ID, PublicKey: c.PublicKey}}.Encode()
}

func (b backend) ListClients(ctx context.Context) ([]control.Client, error) {
	clients, err := b.registry.Clients(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]control.Client, len(clients))
	for i, c := range clients {
		list[i] = clientView(c)
	}
	return list, nil
}

func (b backend) RevokeClient(ctx context.Context, name string) (control.Client, error) {
	now := time.Now().UTC()
	var revoked registry.Client
	err := b.registry.Update(ctx, func(tx *registry.Tx) (err error) {
		if revoked, err = tx.RevokeClient(name, now); err != nil {
			return err
		}
		line, err := clientEntry(record.ClientRevoked, revoked, now)
		if err != nil {
			return err
		}
		_, err = tx.Append(line)
		return err
	})
	if errors.Is(err, worker.ErrNotFound) {
		err = worker.Hint(err, "run dals-host client list to see those that there are")
	}
	return clientView(revoked), err
}

func (b backend) Status(ctx context.Context) (control.Status, error) {
	size, err := b.registry.Size(ctx)
	if err != nil {
		return control.Status{}, err
	}
	_, published := b.record.Checkpoint()
	return control.Status{
		HostID: b.ID(), Version: b.Version, Launcher: b.launcher.Name(), LauncherReason: b.reason,
		StartedAt: b.startedAt, RecordSize: size, CheckpointSize: published, Degraded: slices.Concat(b.storageFaults(ctx), b.ports.degraded(), b.launcherFaults(ctx), b.strays.degraded()),
	}, nil
}

func (b backend) Types(ctx context.Context) ([]control.Type, error) {
	entries := b.catalog.Types()
	list := make([]control.Type, len(entries))
	for i, e := range entries {
		n, err := b.registry.CountWorkers(ctx, e.Descriptor.GetName(), e.Descriptor.GetVersion())
		if err != nil {
			return nil, err
		}
		list[i] = control.Type{Descriptor: e.Descriptor, Digest: e.Digest, Workers: n, Draining: e.Draining}
	}
	return list, nil
}

func (b backend) Plugins(context.Context) ([]control.Plugin, error) {
	seen := b.catalog.Plugins()
	list := make([]control.Plugin, len(seen))
	for i, p := range seen {
		list[i] = control.Plugin{
			Path: p.Path, Digest: p.Digest, State: string(p.State), Type: p.Type, Version: p.Version, Reason: p.Reason, Fix: p.Fix,
		}
	}
	return list, nil
}

const (
	// defaultDownTimeout is what workers get to end by themselves.
	defaultDownTimeout = 10 * time.Second
	// downLimit bounds, beyond that, how long ending all of them may take, with
	// downEach for every one.
	downLimit = time.Minute
	downEach  = 200 * time.Millisecond
	// downAtOnce is how many workers may be ending by themselves at a time.
	downAtOnce = 256
)

// Down ends every worker, then what the launcher runs, then the host, whatever
// could not be ended: a host that has begun to go down cannot serve on. The
// timeout runs first for what is being done to workers, then for all workers at
// the same time. The workers stay in the registry: the next host on this folder
// starts them again.
func (b backend) Down(ctx context.Context, timeout time.Duration) (int, error) {
	if err := forge.CheckWait("timeout", timeout); err != nil {
		return 0, err
	}
	if timeout == 0 {
		timeout = defaultDownTimeout
	}
	if !b.goingDown.CompareAndSwap(false, true) {
		select { // somebody else is at it
		case <-b.isDown:
			return 0, nil
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the host to go down: %w", ctx.Err())
		}
	}
	ctx = context.WithoutCancel(ctx)
	defer close(b.isDown)
	freezing, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cut := b.forge.Freeze(freezing)
	b.supervisor.Close()
	n, err := b.endWorkers(ctx, timeout)
	return n, errors.Join(err, cut)
}

// endWorkers ends every worker, then what the launcher runs, and says how many
// workers there were.
func (b backend) endWorkers(ctx context.Context, timeout time.Duration) (int, error) {
	listing, cancel := context.WithTimeout(ctx, downLimit)
	defer cancel()
	running, err := b.listWorkers(listing)
	if err != nil {
		return 0, fmt.Errorf("list workers: %w", err)
	}
	ctx, cancel = context.WithTimeout(ctx, timeout+downLimit+time.Duration(len(running))*downEach)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(downAtOnce)
	for _, s := range running {
		g.Go(func() error {
			return errors.Join(b.launcher.Stop(ctx, s.Serial, timeout), b.launcher.Remove(ctx, s.Serial))
		})
	}
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("end workers: %w", err)
	}
	if err := b.launcher.Down(ctx); err != nil {
		return 0, fmt.Errorf("end launcher: %w", err)
	}
	return len(running), nil
}

// listWorkers asks the launcher for what runs. One that is away is given until ctx
// ends to come back: what it does not tell would be left running.
func (b backend) listWorkers(ctx context.Context) ([]launch.Status, error) {
	for {
		list, err := b.launcher.List(ctx)
		if !errors.Is(err, worker.ErrUnavailable) {
			return list, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
