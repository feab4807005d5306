package host

import (
	"errors"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

func TestLagFault(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		entries uint64
		age     time.Duration
		refused bool
	}{
		{0, 0, false},
		{100_000, time.Minute, false},
		{100_001, time.Second, true},
		{1, time.Minute + 1, true},
		{1, -time.Hour, false}, // the clock was set back
	} {
		err := lagFault(c.entries, c.age)
		if refused := errors.Is(err, worker.ErrUnavailable) && worker.HintOf(err) != ""; refused != c.refused {
			t.Errorf("%d entries, %s: %v", c.entries, c.age, err)
		}
	}
}
