package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/dals-host/dals-host/sdk/client"
)

// mostSeconds is the aim, for 1,000 registered workers.
const mostSeconds = 5

// BenchmarkColdStart kills a host and starts the next on its data folder: how
// long until it serves, and until it has heard of every worker that runs. One
// worker in five runs, the others are stopped.
func BenchmarkColdStart(b *testing.B) {
	for _, launcher := range []string{"process", "containerd"} {
		for _, registered := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", launcher, registered), func(b *testing.B) {
				h := newHost(b, launcher)
				running := registered / 5
				atOnce(b, registered, benchAtOnce, func(i int) error {
					_, err := h.client.Forge(b.Context(), client.ForgeRequest{
						Name: fmt.Sprintf("w%d", i), Type: "template", ClassCode: "A1", NoStart: i >= running,
					})
					return err
				})
				var ready, adopted []float64
				for b.Loop() {
					h.kill()
					began := time.Now()
					h.start()
					ready = append(ready, time.Since(began).Seconds())
					h.eventually("every running worker is heard of", func() error { return h.heardOf(running, began) })
					adopted = append(adopted, time.Since(began).Seconds())
				}
				if median(adopted) > mostSeconds {
					b.Errorf("all are heard of after %.1f s, at most %d", median(adopted), mostSeconds)
				}
				b.ReportMetric(median(ready)*1000, "ready-ms")
				b.ReportMetric(median(adopted)*1000, "adopted-ms")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// heardOf says whether so many workers have given a sign of life since, none of
// them started again.
func (h *host) heardOf(want int, since time.Time) error {
	workers, err := h.client.Workers(h.t.Context(), client.WorkerFilter{State: "live"})
	if err != nil {
		return err
	}
	heard := 0
	for _, w := range workers {
		if w.Restarts > 0 {
			h.t.Fatalf("%s was started again", w.WorkerName)
		}
		if w.Heartbeat.Last.After(since) {
			heard++
		}
	}
	if heard != want {
		return fmt.Errorf("%d of %d", heard, want)
	}
	return nil
}
