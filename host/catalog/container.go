package catalog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/worker"
)

// cageLimits are what a plugin may use while it is probed in a container.
var cageLimits = worker.Limits{MemoryBytes: 512 << 20, CPUMillis: 1000, PIDs: 256}

func (p *process) prepareCage(env []string, dir string) (err error) {
	path := p.binary.Name() // the store's: it names the digest, and nobody writes there
	p.container, err = p.cage.NewRunner(containerd.RunnerConfig{
		Image: launch.Image{Digest: filepath.Base(path), Path: path}, UID: p.uid, Life: p.patience, Limits: cageLimits,
	}, env, dir)
	return err
}

// liveCaged is live with a container: it sees it through to its end.
func (p *process) liveCaged(started chan<- error) {
	defer close(p.gone)
	if err := p.container.Start(p.ctx); err != nil {
		started <- err
		return
	}
	p.log.Debug("plugin runs in a container", "binary", p.binary.Name(), "id", p.container.ID())
	pumps := p.listen(p.container.Stdout().(*os.File), p.container.Stderr().(*os.File))
	defer p.container.Stdout().Close()
	defer p.container.Stderr().Close()
	started <- nil
	select {
	case <-p.container.Ended():
		p.byItself = p.ctx.Err() == nil
		p.timeOver = p.byItself && p.container.Exit().Unknown
	case <-p.ctx.Done():
	}
	close(p.exited)
	// How long that takes is bounded by the Runner.
	_ = p.container.Kill(context.WithoutCancel(p.ctx))
	pumps()
}

func (p *process) cagedToHost(network, address string) (string, string, error) {
	network, address, err := p.container.PluginToHost(network, address)
	if err != nil {
		return "", "", bad(listenFix, "%v", err)
	}
	p.address = address
	return network, address, nil
}

// cagedObituary says how the container ended by itself; nothing if the host
// ended it.
func (p *process) cagedObituary() string {
	exit := p.container.Exit()
	switch {
	case !p.byItself || exit.Unknown:
		return ""
	case exit.OOMKilled:
		return fmt.Sprintf("took more memory than the %d MiB that it may", cageLimits.MemoryBytes>>20)
	case exit.Signal != "":
		return "was " + exit.String()
	}
	return fmt.Sprintf("exited with code %d", exit.Code)
}

// lacksLoader says that a container runtime could not execute a binary that is
// there: what it needs beside itself is not. That comes as text alone.
func (p *process) lacksLoader() bool {
	text := strings.ToLower(string(p.stderr))
	return p.cage != nil && p.container.Exit().Code != 0 && strings.Contains(text, "exec ") &&
		strings.Contains(text, "/dals-worker") && strings.Contains(text, "no such file or directory")
}
