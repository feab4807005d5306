package host

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// TestDownDuringALongStop: a stop with a long grace, of a worker that does not end
// by itself, does not keep the host from going down.
func TestDownDuringALongStop(t *testing.T) {
	eachLauncher(t, func(t *testing.T, p *inProcess) {
		w, err := p.forgeOne(t.Context(), "nora")
		if err != nil {
			t.Fatal(err)
		}
		running, err := p.launcher.List(t.Context())
		at := slices.IndexFunc(running, func(s launch.Status) bool { return s.Serial == w.Serial })
		if err != nil || at < 0 {
			t.Fatalf("%+v, %v", running, err)
		}
		pid := running[at].PID
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil { // it will not hear of SIGTERM
			t.Fatal(err)
		}
		stopped := make(chan error, 1)
		go func() {
			_, err := backend{p.Host}.Stop(t.Context(), "nora", time.Hour)
			stopped <- err
		}()
		p.eventually("nora is being stopped", func() bool {
			row, err := p.registry.Worker(t.Context(), w.Serial)
			return err == nil && row.State == worker.StateStopped
		})
		if _, err := (backend{p.Host}).Down(t.Context(), 2*time.Hour); !errors.Is(err, worker.ErrInvalid) {
			t.Errorf("down in two hours: %v", err)
		}
		if _, err := (backend{p.Host}).Down(t.Context(), 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), "(nora)") || strings.Contains(err.Error(), "end workers") {
			t.Errorf("down: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Errorf("stopped: %v", err)
		}
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d is there: %v", pid, err)
		}
	})
}
