package e2e

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dals-host/dals-host/sdk/client"
)

// BenchmarkForgeRate measures what one host does for callers on its control
// socket: dry runs, and complete forges under the process launcher, to the first
// verified heartbeat. One iteration is one batch; what it made is retired before
// the next, and that is not measured. The callers run in the benchmark's own
// process, on the same machine.
func BenchmarkForgeRate(b *testing.B) {
	for _, what := range []struct {
		name  string
		batch int
		ask   client.ForgeRequest
	}{
		{"dry-run", 400, client.ForgeRequest{DryRun: true}},
		{"no-start", 100, client.ForgeRequest{NoStart: true}},
		{"full", 40, client.ForgeRequest{}},
	} {
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/callers=%d", what.name, callers), func(b *testing.B) {
				h := newHost(b, "process")
				h.forge("warm", "template")
				clients := make([]*client.Client, callers)
				for i := range clients {
					clients[i] = h.dial(h.operator())
				}
				var rates []float64
				for b.Loop() {
					rates = append(rates, h.rate(clients, what.batch, what.ask))
				}
				b.ReportMetric(median(rates), "forges/s")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// rate is how many forges a second the clients get, each asking for one at a
// time.
func (h *host) rate(clients []*client.Client, n int, ask client.ForgeRequest) float64 {
	h.t.Helper()
	ask.Type, ask.ClassCode = "template", "A1"
	each := func(do func(c *client.Client, name string) error) {
		var next atomic.Int64
		var all sync.WaitGroup
		for _, c := range clients {
			all.Go(func() {
				for i := next.Add(1); int(i) <= n; i = next.Add(1) {
					if err := do(c, fmt.Sprintf("w%d", i)); err != nil {
						h.t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if h.t.Failed() {
			h.t.FailNow()
		}
	}
	began := time.Now()
	each(func(c *client.Client, name string) error {
		r := ask
		r.Name = name
		_, err := c.Forge(h.t.Context(), r)
		return err
	})
	took := time.Since(began)
	if !ask.DryRun {
		each(func(c *client.Client, name string) error {
			_, err := c.Retire(h.t.Context(), name, time.Second)
			return err
		})
	}
	return float64(n) / took.Seconds()
}
