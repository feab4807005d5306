package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/internal/whole"
)

func (p *private) makeDirs() error {
	dirs := []string{p.dir}
	if p.runDir != "" {
		dirs = append(dirs, p.runDir)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes the configuration for a containerd that is about to be started.
// What containerd and the runtime know of running containers does not survive the
// machine: after a boot it is deleted.
func (p *private) prepare() error {
	booted, now, err := p.hasBooted()
	if err != nil {
		return err
	}
	if booted {
		if err := p.removeState(); err != nil {
			return err
		}
	}
	failpoint.Hit("containerd", "config", "before")
	if err = whole.Clear(p.dir); err == nil {
		err = errors.Join(
			p.makeState(),
			whole.WriteFile(p.bootFile(), []byte(now)),
			whole.WriteFile(p.configFile(), []byte(p.config())),
		)
	}
	failpoint.Hit("containerd", "config", "after")
	return err
}

// linkShim has containers that are started from now on have this host's shim. Their
// records name the link: they stay when the host is installed elsewhere. containerd
// must not run without it: it could settle nothing that it finds dead.
func (p *private) linkShim() error {
	if target, err := os.Readlink(p.shim); err == nil && target == p.program {
		return nil
	}
	return renameio.Symlink(p.program, p.shim)
}

func (p *private) configFile() string { return filepath.Join(p.dir, "config.toml") }
func (p *private) logFile() string    { return filepath.Join(p.dir, "containerd.log") }

// config has containerd serve what the launcher uses. Names that a version of
// containerd does not know are ignored by it.
func (p *private) config() string {
	disabled := []string{
		"io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
		"io.containerd.image-verifier.v1.bindir", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
		"io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
		"io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
		"io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.overlayfs",
		"io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
	}
	quoted := make([]string, len(disabled))
	for i, name := range disabled {
		quoted[i] = strconv.Quote(name)
	}
	return fmt.Sprintf(configText, filepath.Join(p.dir, "root"), p.stateDir(), strings.Join(quoted, ", "), p.address, gcShare)
}

// configText is containerd's own format (containerd-config.toml(5)).
const configText = `version = 2
root = %q
state = %q
disabled_plugins = [%s]
[grpc]
  address = %q
[debug]
  level = "warn"
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = %g
`

// gcShare is the part of time that containerd may collect garbage in. It looks whether
// it has to after what its last collections took, over that: by its own 0.02, with next
// to nothing to collect, forty times a second, half a percent of a core. Now it looks
// about once in two seconds.
const gcShare = 0.0003
