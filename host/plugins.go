package host

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/catalog"
	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// plugins is the catalog's memory: what it learned of binaries is kept in the
// registry, and told to the record in the same transaction. Descriptors are held
// at hand by digest, because workers outlive the files that they came from.
type plugins struct {
	registry *registry.Registry

	mu          sync.RWMutex
	descriptors map[string]*workerv1.TypeDescriptor
}

func newPlugins(ctx context.Context, r *registry.Registry, logger hclog.Logger) (*plugins, error) {
	p := &plugins{registry: r, descriptors: map[string]*workerv1.TypeDescriptor{}}
	known, err := r.Descriptors(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range known {
		d := &workerv1.TypeDescriptor{}
		if err := proto.Unmarshal(k.Descriptor, d); err != nil {
			// One type's trouble is its own: without a descriptor its tasks are not
			// known, until the binary is seen and asked again.
			logger.Error("descriptor of a plugin not readable", "digest", k.Digest, "type", k.Type, "version", k.Version, "error", err)
			continue
		}
		p.descriptors[k.Digest] = d
	}
	return p, nil
}

// Descriptor is what the plugin of that digest said of its type.
func (p *plugins) Descriptor(digest string) (*workerv1.TypeDescriptor, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	d, ok := p.descriptors[digest]
	if !ok {
		return nil, fmt.Errorf("descriptor of plugin %s: %w", digest, worker.ErrNotFound)
	}
	return d, nil
}

// Verdicts are the outcomes of all probes so far.
func (p *plugins) Verdicts(ctx context.Context) ([]catalog.Verdict, error) {
	described, err := p.registry.Descriptors(ctx)
	if err != nil {
		return nil, err
	}
	quarantined, err := p.registry.Quarantines(ctx)
	if err != nil {
		return nil, err
	}
	verdicts := make([]catalog.Verdict, 0, len(described)+len(quarantined))
	for _, k := range described {
		d, err := p.Descriptor(k.Digest)
		if err != nil {
			continue // not readable: no verdict
		}
		verdicts = append(verdicts, catalog.Verdict{Digest: k.Digest, Descriptor: d, At: k.ProbedAt})
	}
	for _, q := range quarantined {
		verdicts = append(verdicts, catalog.Verdict{Digest: q.Digest, Reason: q.Reason, Fix: q.Fix, At: q.At})
	}
	return verdicts, nil
}

// Claims are the versions that were ever registered.
func (p *plugins) Claims(ctx context.Context) ([]catalog.Claim, error) {
	types, err := p.registry.Types(ctx)
	if err != nil {
		return nil, err
	}
	claims := make([]catalog.Claim, len(types))
	for i, t := range types {
		// Also without a readable descriptor the version is taken by these bytes.
		d, _ := p.Descriptor(t.Digest)
		claims[i] = catalog.Claim{
			Type: t.Name, Version: t.Version, Family: d.GetFamily(), Digest: t.Digest, OwnerUID: t.OwnerUID, At: t.RegisteredAt,
		}
	}
	return claims, nil
}

// SaveVerdict keeps what came of a probe.
func (p *plugins) SaveVerdict(ctx context.Context, v catalog.Verdict) error {
	if v.Descriptor == nil {
		return p.saveQuarantine(ctx, v)
	}
	d := v.Descriptor
	text, err := encodeDescriptor(d)
	if err != nil {
		return err
	}
	err = p.registry.Update(ctx, func(tx *registry.Tx) error {
		if err := tx.RemoveQuarantine(v.Digest); err != nil {
			return err
		}
		return tx.PutDescriptor(registry.Descriptor{
			Digest: v.Digest, Type: d.GetName(), Version: d.GetVersion(), Descriptor: text, ProbedAt: v.At,
		})
	})
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.descriptors[v.Digest] = d
	}
	return err
}

func (p *plugins) saveQuarantine(ctx context.Context, v catalog.Verdict) error {
	line, err := pluginEntry(record.PluginQuarantined, v.At, record.PluginFields{Digest: v.Digest, Fix: v.Fix}, v.Reason)
	if err != nil {
		return err
	}
	return p.registry.Update(ctx, func(tx *registry.Tx) error {
		if err := tx.PutQuarantine(registry.Quarantine{Digest: v.Digest, Reason: v.Reason, Fix: v.Fix, At: v.At}); err != nil {
			return err
		}
		_, err := tx.Append(line)
		return err
	})
}

// SaveClaim keeps the first sight of a version.
func (p *plugins) SaveClaim(ctx context.Context, c catalog.Claim) error {
	lines, err := p.claimEntries(c)
	if err != nil {
		return err
	}
	return p.registry.Update(ctx, func(tx *registry.Tx) error {
		err := tx.PutType(registry.Type{Name: c.Type, Version: c.Version, Digest: c.Digest, OwnerUID: c.OwnerUID, RegisteredAt: c.At})
		for _, line := range lines {
			if err == nil {
				_, err = tx.Append(line)
			}
		}
		return err
	})
}

// claimEntries tell the record all that the registry keeps of a claim. A
// descriptor may be longer than an entry.
func (p *plugins) claimEntries(c catalog.Claim) ([][]byte, error) {
	d, err := p.Descriptor(c.Digest)
	if err != nil {
		return nil, err
	}
	rest, err := encodeDescriptor(d)
	if err != nil {
		return nil, err
	}
	var lines [][]byte
	add := func(kind record.Kind, fields record.PluginFields) (err error) {
		line, err := pluginEntry(kind, c.At, fields, "")
		lines = append(lines, line)
		return err
	}
	for len(rest) > record.MaxDescriptorPart {
		if err := add(record.PluginDescribed, record.PluginFields{Digest: c.Digest, Descriptor: rest[:record.MaxDescriptorPart]}); err != nil {
			return nil, err
		}
		rest = rest[record.MaxDescriptorPart:]
	}
	err = add(record.PluginRegistered, record.PluginFields{
		Digest: c.Digest, Type: c.Type, Version: c.Version, OwnerUID: c.OwnerUID, Descriptor: rest,
	})
	return lines, err
}

func encodeDescriptor(d *workerv1.TypeDescriptor) ([]byte, error) {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode descriptor: %w", err)
	}
	return text, nil
}

func pluginEntry(kind record.Kind, at time.Time, fields record.PluginFields, reason string) ([]byte, error) {
	return record.Entry{At: at, Kind: kind, Plugin: &fields, Reason: reason}.Encode()
}

// openCatalog makes the catalog over the plugins folders.
func (h *Host) openCatalog(ctx context.Context) (err error) {
	if h.plugins, err = newPlugins(ctx, h.registry, h.Logger.Named("plugins")); err != nil {
		return fmt.Errorf("read known plugins: %w", err)
	}
	cage, _ := withoutPoints(h.launcher).(*containerd.Launcher) // under another launcher a plugin is probed as a process
	prober, err := catalog.NewProber(catalog.ProberConfig{
		Dir: h.paths.probes, UID: firstUIDOf(h.keys.HostID()), Cage: cage, Logger: h.Logger.Named("probe"),
	})
	if err != nil {
		return err
	}
	h.catalog, err = catalog.New(catalog.Config{
		Dirs: append([]string{h.paths.plugins}, h.PluginDirs...), StoreDir: h.paths.store,
		Prober: prober, Registry: h.plugins, InUse: h.inUse, Logger: h.Logger.Named("catalog"),
	})
	return err
}

// inUse says whether a worker of that version lives. Where that cannot be read
// it says yes: nothing is forgotten on a doubt.
func (h *Host) inUse(typeName, version string) bool {
	n, err := h.registry.CountWorkers(context.Background(), typeName, version)
	return err != nil || n > 0
}

// binary is the store's copy of a plugin, the only one that is ever executed.
func (p paths) binary(digest string) string { return filepath.Join(p.store, "sha256", digest) }
