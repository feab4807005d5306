package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/dals-host/dals-host/host/broker"
	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/forge"
	"github.com/dals-host/dals-host/host/gate"
	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/stage"
	"github.com/dals-host/dals-host/host/supervise"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/envelope"
	"github.com/dals-host/dals-host/sdk/identity"
)

// The uids that a root host gives to workers, and to the probes of plugins (two,
// from probeUID on): above the system's own, below what useradd hands out as
// subordinate ids (100000 on).
var workerUIDs = forge.UIDRange{Low: 70_000, High: 99_999}

const probeUID = 69_998

// metaOperator is set once the operator is enrolled: what must happen once in a
// data folder's life has happened.
const metaOperator = "operator_enrolled"

func (h *Host) openRegistry(ctx context.Context) (err error) {
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

func (h *Host) openRecord(ctx context.Context) (err error) {
	h.record, err = record.Open(ctx, record.Config{
		Dir: h.paths.record, Signer: h.keys.CheckpointSigner(), Source: source{h.registry}, Logger: h.Logger.Named("record"),
	})
	return err
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
	return nil
}

func (h *Host) openStage(context.Context) (err error) {
	if h.stage, err = stage.Open(stage.Config{Dir: h.paths.workers}); err != nil {
		return err
	}
	h.onClose(h.stage.Close)
	return nil
}

func (h *Host) openGateAndBroker(ctx context.Context) (err error) {
	h.gate = gate.New(ctx, gate.Config{
		Directory: directory{h.registry}, Kinds: kinds{h.plugins}, Recorder: recorder{h.registry}, Logger: h.Logger.Named("gate"),
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

func (h *Host) openSupervisorAndForge(context.Context) error {
	verifier, err := note.NewVerifier(h.keys.CheckpointKey())
	if err != nil {
		return fmt.Errorf("make checkpoint verifier: %w", err)
	}
	h.integrity = &integrity{keys: h.keys, recordDir: h.paths.record, verifier: verifier, open: h.stage.OpenRoot}
	h.supervisor = supervise.New(supervise.Config{
		Launcher: h.launcher, Registry: h.registry, Pulse: h.broker, Spec: h.spec,
		Interval: heartbeatInterval, Changed: h.mirror, Logger: h.Logger.Named("supervise"),
	})
	h.onClose(func() error { h.supervisor.Close(); return nil })
	c := forge.Config{
		Types: types{h.catalog}, Registry: h.registry, Stage: h.stage, Ports: h.ports, Keys: h.keys, Authority: h.authority,
		Launcher: h.launcher, Sessions: h.broker, Keeper: h.supervisor, Checkpoint: h.record.Checkpoint,
		Changed: h.mirror, OwnUID: os.Geteuid(), Spec: h.spec, Logger: h.Logger.Named("forge"),
	}
	if os.Geteuid() == 0 {
		c.UIDs = workerUIDs
	}
	h.forge = forge.New(c)
	return nil
}

func (h *Host) openControl(context.Context) (err error) {
	b := backend{h}
	h.control, err = control.New(control.Config{
		Socket: h.paths.socket, Forger: b, Workers: b, Sender: b, Clients: b, Host: b, Logger: h.Logger.Named("control"),
	})
	return err
}
