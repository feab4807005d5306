package sdk

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/sdk/manifest"
	"github.com/dals-host/dals-host/sdk/vault"
)

// integrity is the worker's own opinion of its manifest and vault. It looks
// again when somebody asks and the last look is old; there is no loop. A worker
// that starts with a fault never opens its type; when the fault is mended it has
// to start again, and mended is closed to say so.
type integrity struct {
	look    func() error
	recheck time.Duration
	log     hclog.Logger

	mu      sync.Mutex
	fault   string
	at      time.Time
	looking bool
	sealed  bool
	mended  chan struct{}
	looks   sync.WaitGroup
}

// newIntegrity looks for the first time.
func newIntegrity(f *folder, recheck time.Duration, log hclog.Logger) *integrity {
	i := &integrity{look: f.check, recheck: recheck, log: log, mended: make(chan struct{})}
	if err := i.look(); err != nil {
		i.fault, i.sealed = err.Error(), true
		log.Error("vault_integrity=false: every envelope is refused", "fault", i.fault)
	}
	i.at = time.Now()
	return i
}

// current is what is known to be wrong, or "". It never waits for a disk.
func (i *integrity) current() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.looking && time.Since(i.at) >= i.recheck {
		i.looking = true
		i.looks.Go(i.again)
	}
	return i.fault
}

func (i *integrity) again() {
	err := i.look()
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.fault
	i.fault = ""
	if err != nil {
		i.fault = err.Error()
	}
	i.at, i.looking = time.Now(), false
	switch {
	case i.fault != "" && i.fault != before:
		i.log.Error("vault_integrity=false: every envelope is refused", "fault", i.fault)
	case i.fault == "" && before != "":
		i.log.Info("vault_integrity=true again")
		if i.sealed {
			i.sealed = false
			close(i.mended)
		}
	}
}

// check looks at everything that the forge made: the manifest with all files
// that it lists, and what the vault says.
func (f *folder) check() error {
	id := f.identity
	m, err := manifest.Check(f.root, id.ManifestKey)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if m.WorkerSerial != id.WorkerSerial {
		return fmt.Errorf("manifest: it is that of %s", m.WorkerSerial)
	}
	accountability, err := f.read(vault.AccountabilityFile)
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if _, _, err := vault.CheckAccountability(accountability, id.WorkerSerial, id.HostID, id.CheckpointKey); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	reflection, err := f.read(vault.ReflectionFile)
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if _, err := vault.CheckReflection(reflection, id.WorkerSerial); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	return nil
}
