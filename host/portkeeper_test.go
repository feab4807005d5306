package host

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/ports"
	"github.com/dals-host/dals-host/host/worker"
)

// TestCloseWhileAsked: a request that is being answered looks at the ports too.
func TestCloseWhileAsked(t *testing.T) {
	t.Parallel()
	pool, err := ports.New(ports.Config{Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	const serial = worker.Serial("DMN-TP-1-00000000-00000")
	asked, goOn := make(chan struct{}), make(chan struct{})
	k := &portKeeper{pool: pool, logger: hclog.NewNullLogger(), held: map[worker.Serial]*ports.Listener{}, lost: map[worker.Serial]lostPort{}}
	k.health = func(s worker.Serial) ports.Health {
		close(asked)
		<-goOn
		_ = k.fault(s)
		return ports.Health{}
	}
	l, err := pool.Bind(t.Context(), func(int) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	k.Assign(serial, l)
	go func() {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", l.Port()))
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-asked
	closed := make(chan error)
	go func() { closed <- k.close() }()
	for k.holds(serial) { // until close is at it
		time.Sleep(time.Millisecond)
	}
	close(goOn)
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("close does not return")
	}
}

func (k *portKeeper) holds(serial worker.Serial) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[serial] != nil
}
