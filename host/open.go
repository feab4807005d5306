package host

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/broker"
	"github.com/dals-host/dals-host/host/care"
	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/door"
	"github.com/dals-host/dals-host/host/forge"
	"github.com/dals-host/dals-host/host/gate"
	"github.com/dals-host/dals-host/host/ingress"
	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/supervise"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
)

// The uids of a host that is root: a block for each host of a machine, chosen by
// its id, far above what useradd and the container tools hand out. The first two
// are for probes of plugins, the last is root in containers' user namespaces, the
// others are for workers.
const (
	firstUID    = 1 << 30
	uidsPerHost = 1 << 14
	uidBlocks   = 1 << 15
	probeUIDs   = 2
)

// firstUIDOf is where a host's block begins.
func firstUIDOf(hostID string) int {
	sum := sha256.Sum256([]byte(hostID))
	return firstUID + int(binary.BigEndian.Uint16(sum[:])%uidBlocks)*uidsPerHost
}

// rootUIDOf is root in the user namespaces of a host's containers.
func rootUIDOf(hostID string) int { return firstUIDOf(hostID) + uidsPerHost - 1 }

// What must happen once in a data folder's life leaves a mark in the registry:
// the operator is enrolled; the record has a checkpoint.
const (
	metaOperator = care.MetaOperator
	metaRecord   = care.MetaRecord
	metaProbe    = "write_probed"
)

func (h *Host) openRegistry(ctx context.Context) (err error) {
	if err := h.registryIsGone(); err != nil {
		return err
	}
	if err := care.SweepBackups(h.paths.data); err != nil {
		return fmt.Errorf("remove unfinished backup: %w", err)
	}
	h.registry, err = registry.Open(ctx, registry.Config{Path: h.paths.registry, Logger: h.Logger.Named("registry")})
	if err != nil {
		return err
	}
	h.onClose(h.registry.Close)
	return nil
}

// openKeys makes the host's and the operator's key with the data folder, and
// never again: later a missing key is an error.
func (h *Host) openKeys(ctx context.Context) error {
	_, err := h.registry.Meta(ctx, metaOperator)
	first := errors.Is(err, worker.ErrNotFound)
	if err != nil && !first {
		return err
	}
	if err := keyring.Sweep(h.paths.keys); err != nil {
		return err
	}
	if h.keys, err = keyring.Open(keyring.Config{Dir: h.paths.keys, First: first}); err != nil {
		return err
	}
	if h.authority, err = identity.NewAuthority(h.keys.HostID(), h.keys.CA().Private()); err != nil || !first {
		return err
	}
	key, _, err := h.keys.LoadOrCreateOperator(true)
	if err != nil {
		return err
	}
	operator := registry.Client{ID: envelope.ClientID(key.Public()), Name: "operator", PublicKey: key.Public(), CreatedAt: time.Now().UTC()}
	return h.enrol(ctx, operator, func(tx *registry.Tx) error { return tx.SetMeta(metaOperator, operator.ID) })
}

func (h *Host) openRecord(ctx context.Context) error {
	_, err := h.registry.Meta(ctx, metaRecord)
	published := err == nil
	if err != nil && !errors.Is(err, worker.ErrNotFound) {
		return err
	}
	h.record, err = record.Open(ctx, record.Config{
		Dir: h.paths.record, Signer: h.keys.CheckpointSigner(), Source: source{h.registry},
		Published: published, Logger: h.Logger.Named("record"),
	})
	if err != nil || published {
		return err
	}
	return h.registry.Update(ctx, func(tx *registry.Tx) error { return tx.SetMeta(metaRecord, h.keys.HostID()) })
}

func (h *Host) openLauncher(ctx context.Context) (err error) {
	living, err := h.registry.Workers(ctx, registry.Filter{})
	if err != nil {
		return fmt.Errorf("read workers: %w", err)
	}
	if h.launcher, h.reason, err = pickLauncher(ctx, h.Config, h.keys.HostID(), living); err != nil {
		return err
	}
	h.onClose(h.launcher.Close)
	if len(h.Warm) > 0 && h.launcher.Name() != launcherContainerd {
		return worker.Hint(fmt.Errorf("keep workers warm under the %s launcher: %w", h.launcher.Name(), worker.ErrInvalid), "leave out --warm, or use --launcher containerd")
	}
	return nil
}

func (h *Host) openStage(context.Context) (err error) {
	if h.stage, err = stage.Open(stage.Config{Dir: h.paths.workers}); err != nil {
		return err
	}
	h.onClose(h.stage.Close)
	h.logs = logsOf(h.stage, h.Logger.Named("logs"))
	return h.replaceGuard()
}

func (h *Host) openGateAndBroker(ctx context.Context) (err error) {
	notBefore, err := h.notBefore(ctx)
	if err != nil {
		return err
	}
	h.gate = gate.New(ctx, gate.Config{
		Directory: directory{h.registry}, Kinds: kinds{h.plugins}, Recorder: recorder{h.registry}, NotBefore: notBefore, Logger: h.Logger.Named("gate"),
	}, past{h.registry})
	h.broker, err = broker.New(ctx, broker.Config{
		Gate: gateway{h.gate}, Registry: h.registry, Authority: h.authority, StampKey: h.keys.Stamp().Private(),
		Interval: heartbeatInterval, Logger: h.Logger.Named("broker"),
	})
	if err != nil {
		return err
	}
	h.onClose(func() error { h.broker.Close(); return nil })
	return nil
}

func (h *Host) openDoors(context.Context) error {
	h.doors = door.New(door.Config{Recorder: indexer{h.registry}, Exchange: exchange{h}, Logger: h.Logger.Named("door")})
	h.onClose(h.doors.Close)
	h.ingress = ingress.New(ingress.Config{
		Key: h.keys.Ingress().Private(), Workers: h.registry, Sender: exchange{h}, Logger: h.Logger.Named("ingress"),
	})
	return nil
}

func (h *Host) openSupervisorAndForge(context.Context) error {
	verifier, err := note.NewVerifier(h.keys.CheckpointKey())
	if err != nil {
		return fmt.Errorf("make checkpoint verifier: %w", err)
	}
	h.integrity = &integrity{keys: h.keys, recordDir: h.paths.record, verifier: verifier, open: h.stage.OpenRoot, binary: h.paths.binary}
	h.supervisor = supervise.New(supervise.Config{
		Launcher: h.launcher, Registry: h.registry, Pulse: h.broker, Spec: h.spec,
		Interval: heartbeatInterval, Changed: h.mirrors.changed, Logger: h.Logger.Named("supervise"),
		LastWords: func(serial worker.Serial) string { return h.forge.LastWords(serial) }, // the forge is made later
	})
	h.onClose(func() error { h.supervisor.Close(); return nil })
	c := forge.Config{
		Types: types{h.catalog}, Registry: h.registry, Stage: h.stage, Ports: h.ports, Keys: h.keys, Authority: h.authority,
		Launcher: h.launcher, Sessions: h.sessions(), Keeper: h.supervisor, Checkpoint: h.record.Checkpoint,
		Changed: h.mirrors.changed, OwnUID: os.Geteuid(), Own: slices.Concat(h.PluginDirs, []string{h.paths.data}), Spec: h.spec, Warm: h.Warm, Logger: h.Logger.Named("forge"),
	}
	if os.Geteuid() == 0 {
		id := h.keys.HostID()
		c.UIDs = forge.UIDRange{Low: firstUIDOf(id) + probeUIDs, High: rootUIDOf(id) - 1}
	}
	h.forge = forge.New(c)
	return nil
}

func (h *Host) openControl(context.Context) (err error) {
	b := backend{h}
	h.control, err = control.New(control.Config{
		Socket: h.paths.socket, Forger: b, Lifecycle: b, Workers: b, Sender: b, Clients: b, Host: b, Backups: b, Collector: b, Logger: h.Logger.Named("control"),
		Drain: h.Drain,
	})
	return err
}
