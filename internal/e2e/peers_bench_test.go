package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/launch/containerd"
)

// BenchmarkPeers measures complete forges to the first verified heartbeat against
// the runners of containers that people have, each as it comes: `podman run -d`
// (with crun), `docker run -d` and `ctr run -d` (with runc) of an image of the same
// binary, and `crun run -d` of a bundle that is ready, which is the floor. Peers run
// the workers in folders that a forge made, in the same cage, as far as their flags
// go (ctr of containerd 1.6 has none for user and pids), and are counted to the
// first heartbeat as well. They make no numbers, keys, certificates, manifests or
// entries. One iteration is one round of all; rounds begin with another each. A
// ratio is the peer's time over ours, so above 1 the forge is faster. Alone, a forge
// is measured also as one that claims a container that was made beforehand.
func BenchmarkPeers(b *testing.B) {
	for _, size := range []struct {
		name     string
		n, width int
	}{
		{"workers=50", 50, benchAtOnce},
		{"workers=200", 200, benchAtOnce},
		{"alone", 15, 1},
	} {
		b.Run(size.name, func(b *testing.B) { forgeAgainstPeers(b, size.n, size.width) })
	}
}

func forgeAgainstPeers(b *testing.B, n, width int) {
	p := newPeers(b, n)
	all := []contender{{"forge", func() cost {
		return forgeAll(b, containerd.Crun, n, width, map[string][]float64{})
	}}}
	if width == 1 {
		all = append(all, contender{"claimed", func() cost { return claimAll(b, containerd.Crun, n, map[string][]float64{}) }})
	}
	for _, one := range p.all() {
		one.open()
		all = append(all, contender{one.name, func() cost { return p.measure(one, width) }})
	}
	figures := map[string][]float64{}
	for round := 0; b.Loop(); round++ {
		costs := map[string]cost{}
		for i := range all {
			c := all[(i+round)%len(all)]
			costs[c.name] = c.run()
		}
		var line strings.Builder
		for _, c := range all {
			figures[c.name+"/s"] = append(figures[c.name+"/s"], costs[c.name].perSecond())
			figures[c.name+"-ms"] = append(figures[c.name+"-ms"], median(costs[c.name].each))
			figures[c.name+"-cpu-ms"] = append(figures[c.name+"-cpu-ms"], costs[c.name].cpuEach())
			figures["ratio-"+c.name] = append(figures["ratio-"+c.name], costs[c.name].took.Seconds()/costs["forge"].took.Seconds())
			fmt.Fprintf(&line, " %s %.1f/s %.0f ms, %.0f ms of CPU;", c.name, costs[c.name].perSecond(), median(costs[c.name].each), costs[c.name].cpuEach())
		}
		b.Log(line.String())
		if width == 1 {
			podman := median(costs["podman"].each)
			figures["forge-of-podman"] = append(figures["forge-of-podman"], median(costs["forge"].each)/podman)
			figures["claimed-of-podman"] = append(figures["claimed-of-podman"], median(costs["claimed"].each)/podman)
		}
	}
	for name, values := range figures {
		b.ReportMetric(median(values), name)
	}
	tellAims(b, figures, width)
	b.ReportMetric(0, "ns/op")
}

// tellAims says which aims are missed: forges per second against each peer's, of
// several at once, and the time of one against podman's.
func tellAims(b *testing.B, figures map[string][]float64, width int) {
	if width == 1 {
		for name, aim := range map[string]float64{"forge": 0.6, "claimed": 0.2} {
			if got := median(figures[name+"-of-podman"]); got > aim {
				b.Logf("missed: %s, alone, takes %.2f of podman's time, more than %.1f", name, got, aim)
			}
		}
		return
	}
	for name, aim := range map[string]float64{"podman": 2.5, "docker": 5, "ctr": 2} {
		if got := median(figures["ratio-"+name]); got < aim {
			b.Logf("missed: %.2f times %s, less than %.1f", got, name, aim)
		}
	}
}

// contender is one that is measured.
type contender struct {
	name string
	run  func() cost
}

// measure runs all but the first of the workers by a peer, and removes them.
func (p *peers) measure(one peer, width int) cost {
	p.b.Helper()
	run := func(serial string) error {
		_ = os.Remove(filepath.Join(p.folder(serial), "run", "worker.sock"))
		if err := one.run(serial); err != nil {
			return err
		}
		return p.awaitHeartbeat(serial)
	}
	if err := run(p.serials[0]); err != nil { // the page cache
		p.b.Fatalf("%s: %v", one.name, err)
	}
	measured := p.serials[1:]
	spent := measure(p.b, len(measured), width, func(i int) error { return run(measured[i]) })
	atOnce(p.b, len(p.serials), 2, func(i int) error { return one.remove(p.serials[i]) })
	return spent
}

// do runs a command; what it said is in its error.
func do(cmd *exec.Cmd) error {
	text, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, text)
	}
	return err
}
